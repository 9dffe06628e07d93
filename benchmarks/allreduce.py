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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import launch, methods, results
from benchmarks.allreduce_table import summarise, table
from benchmarks.netns import rate_or_none
from benchmarks.words import show_table

DEFAULT_BYTES = "102400000"  # 25.6 million coordinates: ResNet-50's


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
    show_table(table(result), folder, console)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    given = parse(argv)
    return launch.command_line("allreduce", lambda console: run(given, console))


if __name__ == "__main__":
    sys.exit(main())
