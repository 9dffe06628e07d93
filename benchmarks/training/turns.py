"""The order in which methods are trained: in turns epoch by epoch, or one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

from benchmarks.methods.catalogue import Method
from benchmarks.ranks.program import Config
from benchmarks.training.trial import Trial


def train(
    config: Config,
    methods: Sequence[Method],
    make: Callable[[Method], Trial],
    free: Callable[[], None],
) -> None:
    """Trains by every method, each warmed up before its first epoch.

    Where they take turns, each epoch begins with another one, so that a machine that becomes busier
    or quieter is the same for all.

    Args:
        config: `turns` and `epochs`.
        methods: in their order.
        make: a method's trial.
        free: called when a trial is over before the next one is made.
    """
    if config["turns"] == "epoch":
        _take_turns([make(method) for method in methods], config["epochs"])
        return
    for method in methods:
        _take_turns([make(method)], config["epochs"])
        gc.collect()
        free()


def _take_turns(trials: list[Trial], epochs: int) -> None:
    # When all are made: what making one of them does may slow the next step of another.
    for trial in trials:
        trial.warm_up()
    for epoch in range(epochs):
        first = epoch % len(trials)
        for trial in trials[first:] + trials[:first]:
            trial.epoch(epoch)
    for trial in trials:
        trial.finish()
