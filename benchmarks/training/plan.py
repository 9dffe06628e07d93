"""What a training benchmark is going to do, checked before any rank starts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks import data
from benchmarks.data import IMAGES, Dataset, Shape
from benchmarks.emulation import launch
from benchmarks.errors import BenchError
from benchmarks.methods import catalogue
from benchmarks.methods.catalogue import Method
from benchmarks.training.frameworks import Framework
from benchmarks.training.tasks import EPOCHS, Optimizer, Task, task_of

AMP = ("bf16", "fp16")
DEVICES = ("cpu", "cuda")
TURNS = ("epoch", "training")
# Weights of all methods together that may be in a rank's memory at once: with gradients and
# momentum about 1 GiB. Beyond that one method is trained after the other.
TURNS_COORDINATES = 1 << 26
SYNTHETIC_ITERS = 10  # as many as Horovod's synthetic benchmark takes
VOCABULARY = 256  # bytes
POSITIVE = (
    *("epochs", "batch", "limit", "test_limit", "image_size", "sequence"),
    *("num_batches_per_iter", "num_iters"),
)


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        framework: to train with.
        runtime: whose ranks its binding uses.
        methods: of exchanging gradients, as they are to be shown.
        dataset: to be trained on.
        config: what the ranks need; the network's interface and the data's folder come to it.
        setup: what the report says of it.
    """

    framework: Framework
    runtime: str
    methods: list[Method]
    dataset: Dataset
    config: dict[str, Any]
    setup: dict[str, Any]


def make_plan(given: argparse.Namespace) -> Plan:
    """Checks a command line, loads its data, and plans its run. Raises BenchError."""
    place = catalogue.place("training", given.workers, given.framework)
    framework = place.framework
    chosen = catalogue.resolve(given.methods, place)
    launch.check_launcher(given.network, given.workers, given.rate)
    _check_numbers(given)
    framework.check_model(given.model)
    task = task_of(given.model)
    options = _options(given.model_option)
    if given.amp and given.amp not in framework.amp:
        raise BenchError(
            f"--amp: expected {' or '.join(framework.amp)} with {framework.text}, got {given.amp}"
        )
    if given.amp == "fp16" and any(method.op == "Adasum" for method in chosen):
        raise BenchError("--amp fp16: adasum exchanges weights' changes, which no scaler sees")
    dataset = _load(given, task, options)
    parameters = _check_model(given, framework, dataset, options)
    batch = given.batch or task.batches.get(dataset.name, task.batch)
    steps, samples = _steps(given, dataset, batch)
    turns = "training" if parameters * len(chosen) > TURNS_COORDINATES else "epoch"
    optimizers = _optimizers(given.learning_rate, chosen, task, dataset)
    config = {
        "methods": [method.name for method in chosen],
        "model": given.model,
        "model_options": options,
        "kind": dataset.kind,
        "shape": dataset.shape,
        "classes": dataset.classes,
        "pixel_scale": dataset.pixel_scale() if dataset.kind == IMAGES else None,
        "masked": task.masked,
        "optimizers": {name: asdict(optimizer) for name, optimizer in optimizers.items()},
        "epochs": given.epochs or EPOCHS[dataset.name],
        "steps": steps,
        "samples": samples,
        "batch": batch,
        "batches_per_iter": min(given.num_batches_per_iter, steps),
        "warmup": given.num_warmup_batches,
        "rise": given.warmup,
        "seed": given.seed,
        "amp": given.amp,
        "device": given.device,
        "turns": given.turns or turns,
    }
    precision = f", {given.amp} autocast" if given.amp else ""
    setup = {
        **config,
        "optimizer_texts": {name: str(optimizer) for name, optimizer in optimizers.items()},
        "baseline": catalogue.BASELINE,
        "target_accuracy": given.target_accuracy or task.targets.get(dataset.name),
        "data": dataset.name,
        "data_text": dataset.title,
        "data_origin": dataset.origin,
        "model_text": f"{task.text} of {parameters:,} weights{precision}",
        "parameters": parameters,
        "samples_per_step": batch * given.workers,
        "train_samples": samples,
        "test_samples": len(dataset.test),
    }
    return Plan(framework, place.runtime, chosen, dataset, config, setup)


def _check_numbers(given: argparse.Namespace) -> None:
    for name in POSITIVE:
        value = getattr(given, name)
        if value is not None and value < 1:
            raise BenchError(f"--{name.replace('_', '-')}: expected 1 or more, got {value}")
    if given.num_warmup_batches < 0:
        raise BenchError(
            f"--num-warmup-batches: expected 0 or more, got {given.num_warmup_batches}"
        )
    if not 0 <= given.warmup < 1:
        raise BenchError(f"--warmup: expected a share from 0, below 1, got {given.warmup:g}")
    target = given.target_accuracy
    if target is not None and not 0 < target < 1:
        raise BenchError(f"--target-accuracy: expected a share between 0 and 1, got {target:g}")


def _options(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, each value a number, a list or whatever else JSON has, or a word."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise BenchError(f"--model-option: expected NAME=VALUE, got {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _load(given: argparse.Namespace, task: Task, options: Mapping[str, Any]) -> Dataset:
    vocabulary = options.get("vocab_size", VOCABULARY)
    if not isinstance(vocabulary, int) or vocabulary < VOCABULARY:
        raise BenchError(
            f"--model-option vocab_size: expected {VOCABULARY} or more, as bytes need, got "
            f"{vocabulary!r}"
        )
    shape = Shape(
        kind=task.kind,
        side=given.image_size,
        sequence=given.sequence or task.sequence,
        vocabulary=vocabulary,
        seed=given.seed,
    )
    return data.load(given.data, shape, given.limit, given.test_limit or task.test_limit)


def _check_model(
    given: argparse.Namespace, framework: Framework, dataset: Dataset, options: Mapping[str, Any]
) -> int:
    """The model's number of weights. Raises BenchError where it cannot be trained here."""
    models = framework.models_module()
    models.check_device(given.device)
    return int(models.check(given.model, dataset.shape, dataset.classes, options))


def _steps(given: argparse.Namespace, dataset: Dataset, batch: int) -> tuple[int, int]:
    """Steps of an epoch, and the samples that they are taken from. Raises BenchError."""
    per_step = batch * given.workers
    iters = given.num_iters
    if dataset.name == "synthetic":
        whole = (iters or SYNTHETIC_ITERS) * given.num_batches_per_iter
        steps = given.limit // per_step if given.limit and not iters else whole
    else:
        steps = len(dataset.train) // per_step
        if iters:
            steps = min(steps, iters * given.num_batches_per_iter)
    if steps < 1:
        there = given.limit if dataset.name == "synthetic" else len(dataset.train)
        raise BenchError(
            f"too few samples: {given.workers} workers with batches of {batch} need {per_step} for "
            f"one step, there are {there}; take a smaller --batch or a larger --limit"
        )
    return steps, steps * per_step if dataset.name == "synthetic" else len(dataset.train)


def _optimizers(
    texts: Sequence[str], chosen: Sequence[Method], task: Task, dataset: Dataset
) -> dict[str, Optimizer]:
    names = [method.name for method in chosen]
    asked = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            asked[name] = float(value)
        except ValueError:
            asked[name] = 0.0
        if name not in names or not asked[name] > 0:
            raise BenchError(
                "--learning-rate: expected METHOD=VALUE, a method of this run and a number above "
                f"0, got {text!r}"
            )
    found = {}
    for method in chosen:
        recipe = task.optimizer(dataset.name, method.recipe)
        rate = asked.get(method.name, recipe.learning_rate)
        found[method.name] = replace(recipe, learning_rate=rate)
    return found
