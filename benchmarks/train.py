"""Trains a network by several ways of exchanging gradients, and compares them.

    python -m benchmarks.train

With no option four workers train a convolutional network on Fashion-MNIST four times: gradients
averaged by Horovod in fp32 and in fp16, decided by majority vote, and by a vote on each worker's
momentum (Signum). As root the workers live in four network namespaces joined at 1 Gbit/s, else on
loopback. Ends with a table; raw figures, plots and the ranks' output stay in a directory under
--out. More:

    python -m benchmarks.train --model resnet18 --data path/to/images --methods fp32,ddp,vote,local
    python -m benchmarks.train --model lstm --data path/to/a/text --methods all --limit 20000
    python -m benchmarks.train --framework tensorflow --methods fp32,vote,local
    python -m benchmarks.train --model gpt2 --model-option n_layer=6 --data synthetic --num-iters 3
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks import data
from benchmarks.emulation import launch
from benchmarks.emulation.netns import rate_or_none
from benchmarks.methods import catalogue
from benchmarks.reporting import plots, results, training_table
from benchmarks.reporting.words import network_text
from benchmarks.training import frameworks
from benchmarks.training.plan import AMP, DEVICES, TURNS, Plan, make_plan
from benchmarks.training.progress import collect
from benchmarks.training.tasks import TASKS, TORCHVISION, WARMUP

WARMUP_HELP = "of the training, in which learning rates rise before they fall to 0 (%(default)s)"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--framework", choices=frameworks.FRAMEWORKS, default=frameworks.DEFAULT)
    add("--methods", help=f"a list of methods and groups ({','.join(catalogue.DEFAULT)})")
    add("--network", choices=launch.NETWORKS, default="auto")
    add("--rate", type=rate_or_none, default="1gbit", help="of each host, or none (%(default)s)")
    add("--workers", "--hosts", type=int, default=4, help="one a host (%(default)s)")
    add("--model", default="cnn", help=f"{', '.join(TASKS)} or {TORCHVISION}NAME (%(default)s)")
    add("--model-option", action="append", default=[], metavar="NAME=VALUE", help="of its config")
    add("--data", default="auto", help=f"{', '.join(data.NAMES)}, an image folder or a text file")
    add("--image-size", type=int, help="pixels a side, of folders and synthetic images")
    add("--sequence", type=int, help="tokens of a sample")
    add("--limit", type=int, help="train on the first so many samples only")
    add("--test-limit", type=int, help="test on the first so many samples only")
    add("--epochs", type=int)
    add("--batch", type=int, help="samples a worker and step")
    add("--num-warmup-batches", type=int, default=10, help="not measured (%(default)s)")
    add("--num-batches-per-iter", type=int, default=10, help="of one throughput (%(default)s)")
    add("--num-iters", type=int, help="throughputs in an epoch; synthetic data: 10, else all")
    add("--learning-rate", action="append", default=[], metavar="METHOD=VALUE")
    add("--warmup", type=float, default=WARMUP, metavar="SHARE", help=WARMUP_HELP)
    add("--amp", choices=AMP, help="mixed precision, by autocast")
    add("--device", choices=DEVICES, default="cpu", help="cuda: the local rank's GPU")
    add(
        "--turns", choices=TURNS, help="whether methods take turns epoch by epoch; by size if unset"
    )
    add("--target-accuracy", type=float, metavar="SHARE", help="0 to 1: report the time to it")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("results"), help="where the directory is made")
    return parser.parse_args(argv)


def run(given: argparse.Namespace, console: Console) -> Path:
    """Runs the benchmark and returns its directory."""
    plan = make_plan(given)
    with launch.network(given.network, given.workers, given.rate) as network:
        name = f"train-{given.model}-{plan.dataset.name}-{network.rate or network.mode}"
        if plan.framework.name != frameworks.DEFAULT:
            name += f"-{plan.framework.name}"
        folder = results.create_directory(given.out, name)
        result = results.new_result("training")
        result.update(framework=plan.framework.name, runtime=plan.runtime)
        result.update(network=network.describe(), setup=plan.setup)
        console.print(
            f"{plan.setup['model_text']} on {plan.setup['data_text']}, {plan.setup['steps']} "
            f"steps an epoch, {plan.setup['epochs']} in all, {network.workers} workers, "
            f"{network_text(result)}"
        )
        result["methods"] = _measure(plan, network, folder, console)
    result["summary"] = [asdict(row) for row in training_table.summarise(result)]
    results.save(folder, result)
    training_table.save_text(result, folder)
    plots.save(result, folder)
    training_table.show(result, console)
    console.print(f"\nraw figures, plots and logs: {folder}")
    return folder


def _measure(plan: Plan, network: launch.Network, folder: Path, console: Console) -> list[dict]:
    with tempfile.TemporaryDirectory(prefix="data-", dir=folder) as stored:
        data.store(plan.dataset, Path(stored))
        config = {**plan.config, "interface": network.interface, "stored": stored}
        with launch.measure(network, plan.framework.program, config, folder) as told:
            return collect(told, plan.methods, plan.setup, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    given = parse(argv)
    return launch.command_line("train", lambda console: run(given, console))


if __name__ == "__main__":
    sys.exit(main())
