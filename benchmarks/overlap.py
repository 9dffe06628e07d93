"""How much of an exchange hides behind backward: the wait that a training step still sees.

    python -m benchmarks.overlap --network cluster --rate 1gbit

Each rank runs the same optimizer that users run on a model of 25.6 million weights whose backward
computes nothing: as beside an accelerator, the processor sleeps until each layer's gradient is
there. Backward sleeps as long as the exchange of all gradients at once takes by itself, which is
measured in the same run. Exposed: how much later than the slowest rank's backward the slowest
rank's optimizer.synchronize() has ended; medians.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.emulation import launch
from benchmarks.emulation.netns import rate_or_none
from benchmarks.methods import catalogue
from benchmarks.reporting import results
from benchmarks.reporting.words import network_text, show_table

COLUMNS = ("method", "alone ms", "backward ms", "exposed ms", "min", "max", "exposed / alone")


def table(result: results.Result) -> Table:
    """The table that the benchmark ends with."""
    setup = result["setup"]
    title = (
        f"{setup['layers']} layers of {setup['coordinates']:,} weights in all, "
        f"{result['network']['workers']} workers, {network_text(result)}; "
        f"HOROVOD_CYCLE_TIME {setup['cycle_time']:g} ms"
    )
    shown = Table(header_style="bold", title_justify="left", title=title)
    for name in COLUMNS:
        shown.add_column(name, no_wrap=True, justify="left" if name == "method" else "right")
    for raw in result["measured"]:
        alone, backward, exposed = (
            1e3 * float(np.median(raw[key])) for key in ("alone", "backward", "exposed")
        )
        shown.add_row(
            raw["label"],
            f"{alone:.4g}",
            f"{backward:.4g}",
            f"{exposed:.4g}",
            f"{1e3 * min(raw['exposed']):.4g}",
            f"{1e3 * max(raw['exposed']):.4g}",
            f"{exposed / alone:.1%}",
        )
    return shown


def _bytes_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--coordinates", type=int, default=25_600_000, help="weights (%(default)s)")
    add("--layers", type=int, default=50, help="of equal size (%(default)s)")
    add("--bucket-bytes", type=_bytes_or_auto, default="auto", help="of a vote (%(default)s)")
    add("-n", "--iters", type=int, default=15)
    add("-w", "--warmup", type=int, default=3)
    add("--methods", help=f"a list ({','.join(catalogue.DEFAULT)})")
    add("--network", choices=launch.NETWORKS, default="auto")
    add("--rate", type=rate_or_none, default="1gbit", help="of each host, or none (%(default)s)")
    add("--workers", "--hosts", type=int, default=4, help="one a host (%(default)s)")
    add("--cycle-time", type=float, default=1, help="ms, Horovod's (%(default)s)")
    add("--out", type=Path, default=Path("results"), help="where the directory is made")
    given = parser.parse_args(argv)
    for option in ("coordinates", "layers", "iters", "warmup"):
        if getattr(given, option) < 1:
            parser.error(f"--{option}: expected 1 or more, got {getattr(given, option)}")
    if given.coordinates < given.layers:
        parser.error("--coordinates: expected no fewer than --layers")
    return given


def run(given: argparse.Namespace, console: Console) -> Path:
    """Runs the benchmark and returns its directory."""
    place = catalogue.place("overlap", given.workers)
    chosen = catalogue.resolve(given.methods, place)
    labels = {method.name: method.label for method in chosen}
    os.environ["HOROVOD_CYCLE_TIME"] = f"{given.cycle_time:g}"
    with launch.network(given.network, given.workers, given.rate) as network:
        folder = results.create_directory(given.out, f"overlap-{network.rate or network.mode}")
        config: dict[str, Any] = {
            "methods": [method.name for method in chosen],
            "coordinates": given.coordinates,
            "layers": given.layers,
            "bucket_bytes": given.bucket_bytes,
            "iters": given.iters,
            "warmup": given.warmup,
            "cycle_time": given.cycle_time,
        }
        result = results.new_result("overlap")
        result.update(network=network.describe(), setup=config, measured=[])
        with launch.measure(network, "benchmarks.ranks.pytorch.overlap", config, folder) as told:
            for event in told:
                if event.pop("event") == "measured":
                    event["label"] = labels[event["method"]]
                    console.print(f"{event['label']}: measured")
                    result["measured"].append(event)
    results.save(folder, result)
    show_table(table(result), folder, console)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    given = parse(argv)
    return launch.command_line("overlap", lambda console: run(given, console))


if __name__ == "__main__":
    sys.exit(main())
