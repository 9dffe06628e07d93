"""Trains a network by Horovod's allreduce and by majority vote, and compares them.

    python -m benchmarks.bench

Four workers train a convolutional network on Fashion-MNIST three times: gradients averaged by
Horovod in fp32, in fp16, and decided by majority vote. As root the workers live in four network
namespaces joined at 1 Gbit/s, else on loopback. Ends with a table; raw figures, plots and the
ranks' output stay in a directory under --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmarks import data, launch, methods, plots, results, training_table
from benchmarks.errors import BenchError
from benchmarks.netns import rate_or_none
from benchmarks.words import network_text

TITLES = {"fashion-mnist": "Fashion-MNIST", "digits": "scikit-learn's handwritten digits"}
EPOCHS = {"fashion-mnist": 4, "digits": 20}
BATCHES = {"fashion-mnist": 64, "digits": 16}
MODEL, MODEL_TEXT = "cnn", "a convolutional network"
WARMUP_STEPS = 10


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--methods", default=methods.DEFAULT, help="a list (%(default)s)")
    add("--network", choices=launch.NETWORKS, default="auto")
    add("--rate", type=rate_or_none, default="1gbit", help="of each host, or none (%(default)s)")
    add("--workers", "--hosts", type=int, default=4, help="one a host (%(default)s)")
    add("--data", choices=("auto", *TITLES), default="auto")
    add("--epochs", type=int, help=f"default {EPOCHS['fashion-mnist']}")
    add("--batch", type=int, help=f"images a worker, default {BATCHES['fashion-mnist']}")
    add("--limit", type=int, help="train on the first so many images only")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("results"), help="where the directory is made")
    return parser.parse_args(argv)


def make_config(given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the ranks need, and what the report says of it, both checked.

    Raises BenchError.
    """
    chosen = methods.resolve(given.methods, given.workers, "overlap")
    launch.check_launcher(given.network, given.workers, given.rate)
    for option in ("epochs", "batch", "limit"):
        value = getattr(given, option)
        if value is not None and value < 1:
            raise BenchError(f"--{option}: expected 1 or more, got {value}")
    source = data.resolve(given.data)
    train, test = data.load(source)
    batch = given.batch or BATCHES[source.name]
    samples = min(given.limit or len(train), len(train))
    needed = batch * given.workers
    if samples < needed:
        raise BenchError(
            f"too few samples: {given.workers} workers with batches of {batch} need {needed} for "
            f"one step, there are {samples}; take a smaller --batch or a larger --limit"
        )
    config = {
        "source": asdict(source),
        "model": MODEL,
        "methods": [method.name for method in chosen],
        "learning_rates": {m.name: m.learning_rates[source.name] for m in chosen},
        "epochs": given.epochs or EPOCHS[source.name],
        "batch": batch,
        "limit": samples,
        "seed": given.seed,
        "warmup": WARMUP_STEPS,
    }
    setup = {
        **config,
        "baseline": methods.BASELINE,
        "data_text": TITLES[source.name],
        "data_origin": source.origin,
        "model_text": MODEL_TEXT,
        "samples_per_step": needed,
        "train_samples": samples,
        "test_samples": len(test),
    }
    return config, setup


def collect(
    events: Iterable[dict[str, Any]], setup: dict[str, Any], console: Console
) -> list[dict[str, Any]]:
    """Draws progress from the ranks' events and returns each method's raw figures.

    Completes `setup` with what only the ranks know.
    """
    rows = {
        method.name: {
            "name": method.name,
            "label": method.label,
            "optimizer": method.optimizer(setup["source"]["name"]),
            "payload_source": method.payload_source,
            "replicas_equal": False,
            "epochs": [],
        }
        for method in methods.chosen(setup["methods"])
    }
    total = setup["epochs"] * (setup["train_samples"] // setup["samples_per_step"])
    with _progress(console) as progress:
        bars = {n: progress.add_task(r["label"], total=total, said="") for n, r in rows.items()}
        for event in events:
            kind, name = event.pop("event"), event.pop("method", None)
            if kind == "ready":
                setup["parameters"] = event["parameters"]
                setup["kernels"] = event["kernels"]
                setup["model_text"] += f" of {event['parameters']:,} weights"
            elif kind == "progress":
                progress.update(bars[name], completed=event["done"])
            elif kind == "epoch":
                rows[name]["epochs"].append(event)
                done = len(rows[name]["epochs"])
                said = f"{event['accuracy']:.1%} right, {event['seconds']:.1f} s an epoch"
                completed = total * done // setup["epochs"]
                progress.update(bars[name], completed=completed, said=said)
                if not console.is_terminal:
                    console.print(f"{rows[name]['label']}, epoch {done}: {said}")
            elif kind == "replicas":
                rows[name]["replicas_equal"] = event["equal"]
    return list(rows.values())


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TextColumn("{task.fields[said]}"),
    )
    return Progress(*columns, console=console, refresh_per_second=4)


def run(given: argparse.Namespace, console: Console) -> Path:
    """Runs the benchmark and returns its directory."""
    config, setup = make_config(given)
    with launch.network(given.network, given.workers, given.rate) as network:
        folder = results.create_directory(
            given.out, f"train-{setup['source']['name']}-{network.rate or network.mode}"
        )
        config["interface"] = network.interface
        result = results.new_result("training")
        result["network"] = network.describe()
        console.print(
            f"{setup['epochs']} epochs of {setup['train_samples']:,} images "
            f"({setup['data_text']}) on {network.workers} workers, "
            f"{network_text(result)}"
        )
        with launch.measure(network, "benchmarks.train_torch", config, folder) as told:
            result["methods"] = collect(told, setup, console)
    result["setup"] = setup
    result["summary"] = [asdict(row) for row in training_table.summarise(result)]
    results.save(folder, result)
    training_table.save_text(result, folder)
    plots.save(result, folder)
    training_table.show(result, console)
    console.print(f"\nraw figures, plots and logs: {folder}")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    given = parse(argv)
    return launch.command_line("bench", lambda console: run(given, console))


if __name__ == "__main__":
    sys.exit(main())
