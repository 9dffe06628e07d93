"""Times one majority vote beside Horovod's allreduce, fp32 and fp16, on the same tensors.

    python -m benchmarks.allreduce --network cluster --rate 1gbit

Sizes are bytes of fp32, doubling (--factor) from --min-bytes to --max-bytes; K, M and G are powers
of 1024, as in nccl-tests. Time is that of the slowest rank; algbw = size / time; busbw = algbw x
2 (M-1)/M, as nccl-tests has it for an allreduce. The wire limit is payload / rate. Speed-up is over
Horovod's fp32, and over the fastest method that is no vote. Horovod is awake beside every method.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import launch, methods, report, results
from benchmarks.netns import rate_or_none

DEFAULT_BYTES = "102400000"  # 25.6 million coordinates: ResNet-50's
COLUMNS = (
    *("size", "method", "median ms", "min", "max", "algbw", "busbw", "payload", "wire"),
    *("limit ms", "wrong", "speed-up", "over best"),
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        size: bytes of fp32.
        method: its label.
        median: seconds of the slowest rank; so are least and most.
        algbw: size / median, bytes/s.
        busbw: algbw x 2 (M-1)/M, bytes/s.
        payload: bytes a worker sends in a call.
        wire: bytes that left its interface; None where that was not measured.
        limit: payload / rate in seconds; None without a rate.
        wrong: coordinates of a sample that were wrong.
        speedup: the baseline's median over this one's; None without a baseline.
        over_best: of a vote: the median of the fastest other method over this one's.
    """

    size: int
    method: str
    median: float
    least: float
    most: float
    algbw: float
    busbw: float
    payload: float
    wire: float | None
    limit: float | None
    wrong: int
    speedup: float | None
    over_best: float | None


def summarise(result: results.Result) -> list[Row]:
    """The table's lines from the raw figures, in their order."""
    network = result["network"]
    workers, rate = network["workers"], network["bits_per_second"]
    bases: dict[int, float] = {}
    best: dict[int, float] = {}
    for raw in result["measured"]:
        median, size = float(np.median(raw["seconds"])), raw["size"]
        if raw["method"] == methods.BASELINE:
            bases[size] = median
        if not methods.METHODS[raw["method"]].votes:
            best[size] = min(median, best.get(size, median))
    rows = []
    for raw in result["measured"]:
        median = float(np.median(raw["seconds"]))
        base = bases.get(raw["size"])
        votes = methods.METHODS[raw["method"]].votes
        rows.append(
            Row(
                size=raw["size"],
                method=raw["label"],
                median=median,
                least=min(raw["seconds"]),
                most=max(raw["seconds"]),
                algbw=raw["size"] / median,
                busbw=raw["size"] / median * 2 * (workers - 1) / workers,
                payload=raw["payload_bytes"],
                wire=raw["wire_bytes"] if network["interface"] else None,
                limit=8 * raw["payload_bytes"] / rate if rate else None,
                wrong=raw["wrong"],
                speedup=None if base is None else base / median,
                over_best=best[raw["size"]] / median if votes and raw["size"] in best else None,
            )
        )
    return rows


def table(result: results.Result) -> Table:
    """The table that the benchmark ends with."""
    title = (
        f"{result['network']['workers']} workers, {report.network_text(result)}; "
        f"HOROVOD_CYCLE_TIME {result['setup']['cycle_time']:g} ms"
    )
    shown = Table(header_style="bold", title_justify="left", title=title)
    for name in COLUMNS:
        shown.add_column(name, no_wrap=True, justify="left" if name == "method" else "right")
    for row in summarise(result):
        shown.add_row(
            report.size_text(row.size),
            row.method,
            f"{1e3 * row.median:.4g}",
            f"{1e3 * row.least:.4g}",
            f"{1e3 * row.most:.4g}",
            report.size_text(row.algbw) + "/s",
            report.size_text(row.busbw) + "/s",
            report.size_text(row.payload),
            "-" if row.wire is None else report.size_text(row.wire),
            "-" if row.limit is None else f"{1e3 * row.limit:.4g}",
            str(row.wrong),
            "-" if row.speedup is None else f"{row.speedup:.2f} x",
            "-" if row.over_best is None else f"{row.over_best:.2f} x",
        )
    return shown


def size(text: str) -> int:
    """Bytes, a multiple of 4, from '1024', '1K', '64M' or '1G'."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected bytes, as in 1024, 1K or 64M, got {text!r}")
    number = int(found[1]) * 1024 ** " KMG".index(found[2] or " ")
    if number < 4 or number % 4:
        raise argparse.ArgumentTypeError(f"expected a multiple of 4 bytes above 0, got {text!r}")
    return number


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allreduce", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("-b", "--min-bytes", type=size, default=DEFAULT_BYTES)
    add("-e", "--max-bytes", type=size, help="default: --min-bytes")
    add("-f", "--factor", type=int, default=2)
    add("-n", "--iters", type=int, default=10)
    add("-w", "--warmup", type=int, default=2)
    add("--methods", default=",".join(methods.METHODS), help="a list (%(default)s)")
    add("--network", choices=launch.NETWORKS, default="auto")
    add("--rate", type=rate_or_none, default="1gbit", help="of each host, or none (%(default)s)")
    add("--workers", "--hosts", type=int, default=4, help="one a host (%(default)s)")
    add("--cycle-time", type=float, default=1, help="ms, Horovod's (%(default)s)")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("results"), help="where the directory is made")
    add("--json", type=Path, help="write the raw figures here too")
    given = parser.parse_args(argv)
    given.max_bytes = given.max_bytes or given.min_bytes
    for option, least in (("factor", 2), ("iters", 1), ("warmup", 1)):
        if getattr(given, option) < least:
            parser.error(f"--{option}: expected {least} or more, got {getattr(given, option)}")
    if given.max_bytes < given.min_bytes:
        parser.error("--max-bytes: expected no less than --min-bytes")
    return given


def sizes(given: argparse.Namespace) -> list[int]:
    """The sizes to measure, in bytes."""
    found = [given.min_bytes]
    while found[-1] * given.factor <= given.max_bytes:
        found.append(found[-1] * given.factor)
    return found


def run(given: argparse.Namespace, console: Console) -> Path:
    """Runs the benchmark and returns its directory."""
    chosen = methods.chosen(given.methods.split(","))
    os.environ["HOROVOD_CYCLE_TIME"] = f"{given.cycle_time:g}"
    with launch.network(given.network, given.workers, given.rate) as network:
        folder = results.create_directory(given.out, f"allreduce-{network.rate or network.mode}")
        config: dict[str, Any] = {
            "methods": [method.name for method in chosen],
            "sizes": sizes(given),
            "iters": given.iters,
            "warmup": given.warmup,
            "seed": given.seed,
            "interface": network.interface,
            "cycle_time": given.cycle_time,
        }
        result = results.new_result("allreduce")
        result.update(network=network.describe(), setup=config, measured=[])
        calls = len(config["sizes"]) * len(chosen) * (given.iters + given.warmup)
        with (
            Progress(console=console, refresh_per_second=4) as progress,
            launch.measure(network, "benchmarks.allreduce_torch", config, folder) as told,
        ):
            bar = progress.add_task("calls", total=calls)
            for event in told:
                kind = event.pop("event")
                if kind == "progress":
                    progress.update(bar, completed=event["done"])
                elif kind == "measured":
                    event["label"] = methods.METHODS[event["method"]].label
                    result["measured"].append(event)
            progress.update(bar, completed=calls)
    result["summary"] = [asdict(row) for row in summarise(result)]
    path = results.save(folder, result)
    if given.json:
        given.json.write_text(path.read_text())
    report.show_table(table(result), folder, console)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    given = parse(argv)
    return launch.command_line("allreduce", lambda console: run(given, console))


if __name__ == "__main__":
    sys.exit(main())
