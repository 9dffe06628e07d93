"""The table of a training benchmark, from its result file alone."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.data import TOKENS
from benchmarks.reporting.results import Result
from benchmarks.reporting.words import WIDTH, network_text, runtime_text, size_text
from benchmarks.training import schedule

ALONE = "local"  # the method that exchanges nothing
OTHERS_SHARE = 0.1  # of the cores; more than that in other hands makes times doubtful
SIGMAS = 1.96  # 95 % of a normal distribution
NOTHING = "-"


@dataclass(frozen=True)
class Summary:
    """What one method's epochs come to.

    Attributes:
        label: the method.
        seconds: mean time per epoch.
        samples_per_second: of all workers together.
        spread: 1.96 standard deviations of the throughputs of the groups of steps; None where there
            is one group only.
        exposed: seconds of an epoch beyond those of a training without exchange; None where that
            was not measured.
        wait_share: part of the time of an epoch spent waiting for communication, 0 to 1; None where
            the optimizer does not tell.
        payload: bytes a worker sends in a step.
        wire: bytes that left a worker's interface in a step; None where that was not measured.
        loss: mean of the last epoch's training, in nats.
        accuracy: on the test samples after the last epoch, 0 to 1; None where nothing was tested.
        target_seconds: of training until the end of the first epoch with the accuracy that was
            asked for; None where none was, or where it was not reached.
        speedup: the baseline's time per epoch over this one's; None without a baseline.
        saving: the baseline's payload over this one's; None without a baseline.
    """

    label: str
    seconds: float
    samples_per_second: float
    spread: float | None
    exposed: float | None
    wait_share: float | None
    payload: float
    wire: float | None
    loss: float
    accuracy: float | None
    target_seconds: float | None
    speedup: float | None
    saving: float | None


def summarise(result: Result) -> list[Summary]:
    """One summary a method, in the result's order."""
    setup = result["setup"]
    measured_wire = result["network"]["interface"] is not None
    means = [_means(method, setup["samples_per_step"]) for method in result["methods"]]
    by_name = {method["name"]: mean for method, mean in zip(result["methods"], means, strict=True)}
    base, alone = by_name.get(setup["baseline"]), by_name.get(ALONE)
    return [
        Summary(
            label=method["label"],
            seconds=mean["seconds"],
            samples_per_second=mean["samples_per_second"],
            spread=mean["spread"],
            exposed=mean["seconds"] - alone["seconds"] if alone else None,
            wait_share=mean["wait_share"],
            payload=mean["payload"],
            wire=mean["wire"] if measured_wire else None,
            loss=method["epochs"][-1]["loss"],
            accuracy=method["epochs"][-1]["accuracy"],
            target_seconds=_time_to(setup["target_accuracy"], method["epochs"]),
            speedup=base["seconds"] / mean["seconds"] if base else None,
            saving=base["payload"] / mean["payload"] if base and mean["payload"] else None,
        )
        for method, mean in zip(result["methods"], means, strict=True)
    ]


def _time_to(target: float | None, epochs: list[dict[str, Any]]) -> float | None:
    seconds = 0.0
    for epoch in epochs:
        seconds += epoch["seconds"]
        if target is not None and epoch["accuracy"] is not None and epoch["accuracy"] >= target:
            return seconds
    return None


def _means(method: dict[str, Any], samples_per_step: int) -> dict[str, Any]:
    epochs = method["epochs"]
    totals = {
        name: sum(epoch[name] for epoch in epochs)
        for name in ("seconds", "payload_bytes", "wire_bytes", "steps")
    }
    told = [epoch["wait_seconds"] for epoch in epochs]
    throughputs = [one for epoch in epochs for one in epoch["iterations"]]
    return {
        "seconds": totals["seconds"] / len(epochs),
        "samples_per_second": totals["steps"] * samples_per_step / totals["seconds"],
        "spread": SIGMAS * statistics.pstdev(throughputs) if throughputs[1:] else None,
        "wait_share": None if None in told else sum(told) / totals["seconds"],
        "payload": totals["payload_bytes"] / totals["steps"],
        "wire": totals["wire_bytes"] / totals["steps"],
    }


def other_cores(result: Result) -> float:
    """How many cores a machine's other programs used while the methods trained, on average."""
    workers = result["network"]["workers"] // (result["network"].get("nodes") or 1)
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
    """The table that the benchmark ends with, without columns that have no figure."""
    shown = Table(header_style="bold", title_justify="left", title=headline(result))
    rows = [_cells(row) for row in summarise(result)]
    for name in rows[0]:
        if any(row[name] != NOTHING for row in rows):
            justify = "left" if name == "method" else "right"
            shown.add_column(name, justify=justify, no_wrap=True)
    for row in rows:
        shown.add_row(*(row[str(column.header)] for column in shown.columns))
    return shown


def _cells(row: Summary) -> dict[str, str]:
    return {
        "method": row.label,
        "s/epoch": f"{row.seconds:.2f}",
        "samples/s": _number(row.samples_per_second)
        + ("" if row.spread is None else f" ± {_number(row.spread)}"),
        "exposed": _or_nothing(row.exposed, "{:.2f} s"),
        "waiting": _or_nothing(row.wait_share, "{:.0%}"),
        "payload": size_text(row.payload),
        "wire": NOTHING if row.wire is None else size_text(row.wire),
        "loss": f"{row.loss:.3f}",
        "accuracy": _or_nothing(row.accuracy, "{:.2%}"),
        "to target": _or_nothing(row.target_seconds, "{:.1f} s"),
        "speed-up": _or_nothing(row.speedup, "{:.2f} x"),
        "saving": _or_nothing(row.saving, "{:.1f} x"),
    }


def _or_nothing(figure: float | None, form: str) -> str:
    return NOTHING if figure is None else form.format(figure)


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 99.5 else f"{figure:.3g}"


def notes(result: Result) -> list[str]:
    """What one has to know to judge the table, one sentence or two each."""
    return [*_what_was_done(result), *_columns(result), *_where(result), *_warnings(result)]


def _what_was_done(result: Result) -> list[str]:
    setup = result["setup"]
    turns = {
        "epoch": "which took turns epoch by epoch where they could share processes",
        "training": "trained one after the other, because the model is large or it was asked for",
    }
    return [
        f"{setup['steps']} steps an epoch, {setup['epochs']} in all, after {setup['warmup']} steps "
        f"that were not measured; batches of {setup['batch']} a worker, "
        f"{setup['train_samples']:,} training and {setup['test_samples']:,} test samples; the same "
        f"seed, weights and batches for all methods, {turns[setup['turns']]}.",
        f"Data: {setup['data_text']} ({setup['data_origin']}).",
        *(f"{method['label']}: {method['optimizer']}." for method in result["methods"]),
        schedule.text(setup.get("rise", 0)),
    ]


def _columns(result: Result) -> list[str]:
    setup, names = result["setup"], [method["name"] for method in result["methods"]]
    asked = "hidden tokens found" if setup["masked"] else "tokens foretold"
    lines = [
        f"samples/s: of all workers, ± {SIGMAS} standard deviations of the throughputs of "
        f"{setup['batches_per_iter']} steps each. Waiting: wall time inside "
        "optimizer.synchronize(), mean of the workers; - where nobody sees it, as in a hook or a "
        "graph. Loss: mean of the last epoch, training samples.",
        "Payload, wire: bytes of a worker in a step, counted, or by formula: "
        + ", ".join(f"{method['name']} {method['payload_source']}" for method in result["methods"])
        + ".",
    ]
    if ALONE in names:
        lines.append(
            "Exposed: the time of an epoch beyond that of no exchange, which computes the same in "
            "this run; its workers' weights drift apart, so it has no accuracy."
            + _other_optimizers(result)
        )
    if setup["kind"] == TOKENS and setup["test_samples"]:
        lines.append(f"Accuracy: the share of {asked} by the likeliest answer.")
    if setup["target_accuracy"] is not None:
        lines.append(
            "To target: training until the end of the first epoch with an accuracy of "
            f"{setup['target_accuracy']:.1%}, evaluation not counted; - where it was not reached."
        )
    return lines


def _other_optimizers(result: Result) -> str:
    kinds = {method["name"]: method["optimizer"].split()[0] for method in result["methods"]}
    other = [name for name, kind in kinds.items() if kind != kinds[ALONE]]
    if not other:
        return ""
    return (
        f" It steps by {kinds[ALONE]}: with {', '.join(other)}, which do not, what their "
        "optimizer saves or costs is in it."
    )


def _where(result: Result) -> list[str]:
    network, machine = result["network"], result["machine"]
    return [
        f"Framework: {runtime_text(result)}.",
        f"Network: {network_text(result)}; started by {network['launcher']}, because: "
        f"{network['why']}. Wire is what left the worker's interface, by its counter.",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, load {machine['load_before']} before the run. "
        f"Other programs used {other_cores(result):.1f} cores meanwhile.",
        f"Of the time shown, {harness_share(result):.2%} at most is the benchmark's own: reading "
        "clocks, adding up, telling of progress.",
    ]


def harness_share(result: Result) -> float:
    """The largest part of a method's time that the benchmark's own code took, 0 to 1."""
    return max(
        sum(epoch["harness_seconds"] for epoch in method["epochs"])
        / sum(epoch["seconds"] for epoch in method["epochs"])
        for method in result["methods"]
    )


def _warnings(result: Result) -> list[str]:
    lines = []
    if other_cores(result) > OTHERS_SHARE * result["machine"]["cores"]:
        lines.append("WARNING: the machine was busy with other programs: do not trust the times.")
    apart = [m["label"] for m in result["methods"] if m["replicas_equal"] is False]
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
