"""The table of a training benchmark, from its result file alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.results import Result
from benchmarks.words import WIDTH, network_text, size_text

OTHERS_SHARE = 0.1  # of the cores; more than that in other hands makes times doubtful
COLUMNS = (
    *("s/epoch", "samples/s", "waiting", "payload/step", "wire/step"),
    *("accuracy", "speed-up", "payload ratio"),
)


@dataclass(frozen=True)
class Summary:
    """What one method's epochs come to.

    Attributes:
        label: the method.
        seconds: mean time per epoch.
        samples_per_second: of all workers together.
        wait_share: part of that time spent waiting for communication, 0 to 1.
        payload: bytes a worker sends in a step.
        wire: bytes that left a worker's interface in a step; None where that was not measured.
        accuracy: on the test images after the last epoch, 0 to 1.
        speedup: the baseline's time per epoch over this one's; None without a baseline.
        saving: the baseline's payload over this one's; None without a baseline.
    """

    label: str
    seconds: float
    samples_per_second: float
    wait_share: float
    payload: float
    wire: float | None
    accuracy: float
    speedup: float | None
    saving: float | None


def summarise(result: Result) -> list[Summary]:
    """One summary a method, in the result's order."""
    setup = result["setup"]
    measured_wire = result["network"]["interface"] is not None
    means = [_means(method, setup["samples_per_step"]) for method in result["methods"]]
    names = [method["name"] for method in result["methods"]]
    base = means[names.index(setup["baseline"])] if setup["baseline"] in names else None
    return [
        Summary(
            label=method["label"],
            seconds=mean["seconds"],
            samples_per_second=mean["samples_per_second"],
            wait_share=mean["wait_share"],
            payload=mean["payload"],
            wire=mean["wire"] if measured_wire else None,
            accuracy=method["epochs"][-1]["accuracy"],
            speedup=base["seconds"] / mean["seconds"] if base else None,
            saving=base["payload"] / mean["payload"] if base else None,
        )
        for method, mean in zip(result["methods"], means, strict=True)
    ]


def _means(method: dict[str, Any], samples_per_step: int) -> dict[str, float]:
    epochs = method["epochs"]
    totals = {
        name: sum(epoch[name] for epoch in epochs)
        for name in ("seconds", "wait_seconds", "payload_bytes", "wire_bytes", "steps")
    }
    return {
        "seconds": totals["seconds"] / len(epochs),
        "samples_per_second": totals["steps"] * samples_per_step / totals["seconds"],
        "wait_share": totals["wait_seconds"] / totals["seconds"],
        "payload": totals["payload_bytes"] / totals["steps"],
        "wire": totals["wire_bytes"] / totals["steps"],
    }


def other_cores(result: Result) -> float:
    """How many cores the machine's other programs used while the methods trained, on average."""
    workers = result["network"]["workers"]
    epochs = [epoch for method in result["methods"] for epoch in method["epochs"]]
    others = (epoch["machine_seconds"] - workers * epoch["cpu_seconds"] for epoch in epochs)
    return max(0.0, sum(others) / sum(epoch["seconds"] for epoch in epochs))


def headline(result: Result) -> str:
    """What was trained, on what, over which network, in one line."""
    setup = result["setup"]
    return (
        f"{setup['model_text']} on {setup['data_text']}, {result['network']['workers']} workers, "
        f"{network_text(result)}"
    )


def table(result: Result) -> Table:
    """The table that the benchmark ends with."""
    shown = Table(header_style="bold", title_justify="left", title=headline(result))
    shown.add_column("method", no_wrap=True)
    for name in COLUMNS:
        shown.add_column(name, justify="right", no_wrap=True)
    for row in summarise(result):
        shown.add_row(
            row.label,
            f"{row.seconds:.2f}",
            f"{row.samples_per_second:,.0f}",
            f"{row.wait_share:.0%}",
            size_text(row.payload),
            "-" if row.wire is None else size_text(row.wire),
            f"{row.accuracy:.2%}",
            "-" if row.speedup is None else f"{row.speedup:.2f} x",
            "-" if row.saving is None else f"{row.saving:.1f} x",
        )
    return shown


def notes(result: Result) -> list[str]:
    """What one has to know to judge the table, one sentence or two each."""
    setup, network, machine = result["setup"], result["network"], result["machine"]
    lines = [
        f"{setup['epochs']} epochs of {setup['train_samples']:,} images, batches of "
        f"{setup['batch']} a worker, {setup['test_samples']:,} test images; the same seed, weights "
        "and batches for all methods, which took turns epoch by epoch.",
        f"Data: {setup['data_text']} ({setup['data_origin']}).",
        *(f"{method['label']}: {method['optimizer']}." for method in result["methods"]),
        "Learning rates fall linearly to zero over the training; each was the best of a short "
        "search on images held out of the training set.",
        "Waiting: wall time inside optimizer.synchronize(), mean of the workers. Payload: bytes "
        "that a worker sends in a step, "
        + ", ".join(f"{method['name']} {method['payload_source']}" for method in result["methods"])
        + " (ring formula: 2 (M-1)/M x width x coordinates).",
        f"Network: {network_text(result)}; started by {network['launcher']}, because: "
        f"{network['why']}. Wire: bytes that left a worker's interface in a step, "
        "by its counter.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, load {machine['load_before']} before the run.",
    ]
    others = other_cores(result)
    lines[-1] += f" Other programs used {others:.1f} cores meanwhile."
    if others > OTHERS_SHARE * machine["cores"]:
        lines.append("WARNING: the machine was busy with other programs: do not trust the times.")
    apart = [method["label"] for method in result["methods"] if not method["replicas_equal"]]
    if apart:
        lines.append(f"WARNING: the workers' weights differ at the end: {', '.join(apart)}.")
    return lines


def show(result: Result, console: Console) -> None:
    """Prints table and notes."""
    console.print(Group(Text(), table(result), *(Text(f"- {line}") for line in notes(result))))


def save_text(result: Result, folder: Path) -> Path:
    """Writes table, notes, versions and command line to report.txt and returns its path."""
    path = folder / "report.txt"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    with path.open("w") as file:
        show(result, Console(file=file, width=WIDTH))
        print(f"- {versions}.\n- {result['started']}: {result['command']}", file=file)
    return path
