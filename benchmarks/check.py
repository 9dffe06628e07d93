"""Key ratios of this machine beside the committed ones: what moved by more than 10 %?

    python -m benchmarks.check

One vote beside Horovod's allreduce, on 102 MB and on 1 KiB, at 1 Gbit/s, without a limit and on
loopback; and the kernels beside the machine's memory. Only ratios are compared, each of times
measured in turns in the same run, and of all of them more is better. Nothing fails because a
figure moved. Takes two to four minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import allreduce, kernels
from benchmarks.emulation import launch
from benchmarks.reporting import allreduce_table, results
from benchmarks.reporting.words import place_text, tensor_text

REFERENCE = Path(__file__).parent / "reference" / "check.json"
KIND = "check"
METHODS = ("fp32", "fp16", "vote")
SMALL = 1024
MOVED = 0.1
NETWORKS = (("cluster", "1gbit"), ("cluster", "none"), ("loopback", "none"))
KERNEL_ROUNDS = 15
COORDINATES = 25_600_000
KERNELS = {"pack float32": kernels.READ, "write_verdict float32": kernels.COPY}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--write", action="store_true", help="make what is measured now the reference")
    add("--reference", type=Path, default=REFERENCE, help="file (%(default)s)")
    add("-e", "--max-bytes", type=allreduce.size, default=allreduce.DEFAULT_BYTES)
    add("-n", "--iters", type=int, default=30)
    given = parser.parse_args(argv)
    if given.iters < 1:
        parser.error(f"--iters: expected 1 or more, got {given.iters}")
    if given.max_bytes % SMALL or given.max_bytes < 2 * SMALL:
        parser.error(f"--max-bytes: expected a multiple of {SMALL} above it, got {given.max_bytes}")
    return given


def call_ratios(result: results.Result) -> dict[str, float]:
    """The ratios of an allreduce result of `METHODS`, each with a name that says of what.

    Of each size how many times as fast as Horovod's fp32 and fp16 the vote is; of the largest one,
    where there is a rate, which share of the rate's limit the vote reaches.
    """
    rows: dict[int, dict[str, Any]] = {}
    for raw, row in zip(result["measured"], allreduce_table.summarise(result), strict=True):
        rows.setdefault(row.size, {})[raw["method"]] = row
    where, found = place_text(result), {}
    for size, by_method in rows.items():
        vote = by_method["vote"]
        for name in ("fp32", "fp16"):
            label = f"{by_method[name].method} / vote, {tensor_text(size)}, {where}"
            found[label] = by_method[name].median / vote.median
    largest = max(rows)
    vote = rows[largest]["vote"]
    if vote.wire_limit is not None:
        label = f"wire limit / vote, {tensor_text(largest)}, {where}"
        found[label] = vote.wire_limit / vote.median
    return found


def kernel_ratios(coordinates: int) -> dict[str, float]:
    """The bandwidth of packing and of writing a verdict, beside reading and copying memory."""
    x = np.random.default_rng(0).standard_normal(coordinates, np.float32)
    yardsticks = kernels.yardsticks(x)
    rows = [row for row in kernels.tensor_rows(x) if row.label in KERNELS]
    kernels.measure([*yardsticks, *rows], KERNEL_ROUNDS, Console(quiet=True))
    readers = [row for row in yardsticks if row.label.startswith(kernels.READ)]
    copy = next(row for row in yardsticks if row.label == kernels.COPY)
    bandwidths = {
        kernels.READ: max(row.bandwidth for row in readers),
        kernels.COPY: copy.bandwidth,
    }
    return {
        f"{row.label} / {KERNELS[row.label]}": row.bandwidth / bandwidths[KERNELS[row.label]]
        for row in rows
    }


def measure(given: argparse.Namespace, console: Console) -> dict[str, float]:
    """All ratios; without the rights for an emulated cluster, those of loopback alone.

    Raises BenchError.
    """
    console.print("kernels")
    found = kernel_ratios(COORDINATES)
    with tempfile.TemporaryDirectory() as folder:
        for mode, rate in _networks(console):
            console.print(f"{mode}, rate {rate}")
            sizes = ("-b", str(SMALL), "-e", str(given.max_bytes))
            line = (
                *("--network", mode, "--rate", rate, "--methods", ",".join(METHODS)),
                *(*sizes, "-f", str(given.max_bytes // SMALL), "-n", str(given.iters)),
                *("--out", folder),
            )
            made = allreduce.run(allreduce.parse(line), Console(quiet=True))
            found |= call_ratios(results.load(made))
    return found


def _networks(console: Console) -> list[tuple[str, str]]:
    try:
        launch.check_launcher("cluster", 2, None)
    except launch.LaunchError as reason:
        console.print(f"on loopback alone: {reason}")
        return [(mode, rate) for mode, rate in NETWORKS if mode == "loopback"]
    return [*NETWORKS]


def table(now: Mapping[str, float], before: Mapping[str, float]) -> Table:
    """Each ratio, what it was, and whether it moved."""
    shown = Table(header_style="bold")
    for name in ("ratio", "reference", "now", "moved", ""):
        shown.add_column(name, no_wrap=True, justify="right" if name else "left")
    shown.columns[0].justify = "left"
    for name, value in now.items():
        old = before.get(name)
        if old is None:
            shown.add_row(name, "-", f"{value:.3g}", "-", "")
            continue
        moved = value / old - 1
        said = "" if abs(moved) <= MOVED else "better" if moved > 0 else "[bold]worse[/bold]"
        shown.add_row(name, f"{old:.3g}", f"{value:.3g}", f"{moved:+.0%}", said)
    return shown


def load(path: Path) -> results.Result | None:
    """The reference; None where there is none yet. Raises ResultError."""
    if not path.exists():
        return None
    reference = results.load(path)
    if reference.get("kind") != KIND:
        got = reference.get("kind")
        raise results.ResultError(f"{path}: expected a result of kind {KIND}, got {got!r}")
    return reference


def run(given: argparse.Namespace, console: Console) -> None:
    """Measures and compares, and writes the reference if that is asked for. Raises BenchError."""
    reference = load(given.reference)
    result = results.new_result(KIND)
    result["ratios"] = measure(given, console)
    console.print(table(result["ratios"], reference["ratios"] if reference else {}))
    console.print(_beside(result["machine"], reference))
    if given.write:
        given.reference.parent.mkdir(parents=True, exist_ok=True)
        given.reference.write_text(json.dumps(result, indent=1) + "\n")
        console.print(f"written: {given.reference}")


def _beside(machine: Mapping[str, Any], reference: results.Result | None) -> str:
    if reference is None:
        return "There is no reference yet: --write makes one."
    then = reference["machine"]
    text = f"Reference: {reference['started'][:10]}, {then['cpu']}, {then['cores']} cores."
    if (then["cpu"], then["cores"]) != (machine["cpu"], machine["cores"]):
        text += f" This machine is another one: {machine['cpu']}, {machine['cores']} cores."
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    given = parse(argv)
    return launch.command_line("check", lambda console: run(given, console))


if __name__ == "__main__":
    sys.exit(main())
