"""Times a majority vote beside what else exchanges gradients, on the same tensors.

    python -m benchmarks.allreduce --network cluster --rate 1gbit
    python -m benchmarks.allreduce --methods all -b 1K -e 512M -f 8

Methods are names or groups of benchmarks/methods.py; `all` are all that can run here. They take
turns, call by call; those that need other environment variables follow, in ranks of their own.
Horovod is awake beside every method. Sizes are bytes of fp32, growing by --factor from --min-bytes
to --max-bytes; K, M and G are powers of 1024, as in nccl-tests. The columns:

- time: of the slowest rank; algbw = size / time; busbw = algbw x 2 (M-1)/M, as nccl-tests has it
  for an allreduce;
- payload: bytes that a rank sends, counted or by formula; wire: what left its interface;
- wire limit = payload / rate; memory limit = 2 (size + payload) / the most that a rank copied while
  all did, measured before each size; it holds for sizes that caches do not (benchmarks/memory.py);
- wrong: how many coordinates of a sample are not what the method promises (--check 1); `-` for
  methods that lose by design;
- speed-up over Horovod's fp32; over best: of our votes, over the fastest of all others.

DDP, its hooks and the baselines exchange gradients of ResNet-50's shapes, over and over until the
size is reached, the last one cut. Their backward computes nothing, so that the time is that of
DistributedDataParallel and its hook alone.
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

import psutil
from rich.console import Console
from rich.progress import Progress

from benchmarks.emulation import allocation, launch
from benchmarks.emulation.netns import rate_or_none
from benchmarks.errors import BenchError
from benchmarks.methods import catalogue
from benchmarks.reporting import plots, results
from benchmarks.reporting.allreduce_table import summarise, table
from benchmarks.reporting.words import show_table, size_text

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
    add(
        "-c",
        "--check",
        type=int,
        choices=(0, 1),
        default=1,
        help="1: check the results (%(default)s)",
    )
    add("--methods", help=f"names and groups ({','.join(catalogue.DEFAULT)})")
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


def check_memory(chosen: Sequence[catalogue.Method], size: int, workers: int) -> None:
    """Checks that a machine's ranks have memory for `size` bytes. Raises BenchError.

    A rank was seen to take up to 9 times the size with a hook of DistributedDataParallel (model,
    buckets, residual, and blocks that the allocator keeps), else up to 5 times;
    another framework's vote adds its input, its verdict and the one before.
    """
    hooks = any(method.group in ("ddp", "baselines") for method in chosen)
    times = (9 if hooks else 5) + 3 * sum(method.framework is not None for method in chosen)
    needed, free = workers * size * times, psutil.virtual_memory().available
    if needed > free:
        raise BenchError(
            f"--max-bytes: {workers} workers need about {size_text(needed)} of memory for "
            f"{size_text(size)}, there are {size_text(free)}; take a smaller size or fewer workers"
        )


def run(given: argparse.Namespace, console: Console) -> Path:
    """Runs the benchmark and returns its directory."""
    place = catalogue.place("allreduce", given.workers)
    chosen = catalogue.resolve(given.methods, place)
    by_name = {method.name: method for method in chosen}
    sharing = allocation.workers_of_a_host(given.network, given.workers)
    check_memory(chosen, sizes(given)[-1], sharing)
    os.environ["HOROVOD_CYCLE_TIME"] = f"{given.cycle_time:g}"
    with launch.network(given.network, given.workers, given.rate) as network:
        folder = results.create_directory(given.out, f"allreduce-{network.rate or network.mode}")
        config: dict[str, Any] = {
            "methods": [method.name for method in chosen],
            "sizes": sizes(given),
            "iters": given.iters,
            "warmup": given.warmup,
            "check": bool(given.check),
            "seed": given.seed,
            "interface": network.interface,
            "cycle_time": given.cycle_time,
        }
        result = results.new_result("allreduce")
        result.update(runtime=place.runtime, network=network.describe(), setup=config, measured=[])
        calls = len(config["sizes"]) * len(chosen) * (given.iters + given.warmup)
        with (
            Progress(console=console, refresh_per_second=4) as progress,
            launch.measure(network, "benchmarks.ranks.pytorch.allreduce", config, folder) as told,
        ):
            bar, before, bandwidth = progress.add_task("calls", total=calls), 0, 0.0
            for event in told:
                kind = event.pop("event")
                if kind == "memory":
                    bandwidth = max(bandwidth, event["bytes_per_second"])
                elif kind == "progress":
                    progress.update(bar, completed=before + event["done"])
                elif kind == "measured":
                    method = by_name[event["method"]]
                    event.update(label=method.label, votes=method.votes)
                    result["measured"].append(event)
                elif kind == "done":
                    before += event["calls"]
                    progress.update(bar, completed=before)
    config["memory_bytes_per_second"] = bandwidth
    order = [method.name for method in chosen]
    result["measured"].sort(key=lambda raw: (raw["size"], order.index(raw["method"])))
    result["summary"] = [asdict(row) for row in summarise(result)]
    path = results.save(folder, result)
    if given.json:
        given.json.write_text(path.read_text())
    plots.save(result, folder)
    show_table(table(result), folder, console)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    given = parse(argv)
    return launch.command_line("allreduce", lambda console: run(given, console))


if __name__ == "__main__":
    sys.exit(main())
