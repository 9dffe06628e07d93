"""The clock of an epoch: steps, groups of steps, waiting, and what reading it costs itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Runs from its making on.

    Args:
        batches_per_iter: steps of a group; as in Horovod's synthetic benchmark, each group gives
            one figure of throughput.
        settle: returns when the device has done what it was asked for.
        tell: is told of every step; its time is ours, not the training's.

    Attributes:
        loss: sum over the steps.
        waited: seconds, summed over the steps; None where a step did not tell.
        groups: seconds of each whole group.
        own_seconds: spent in here, and by `tell`.
    """

    def __init__(
        self, batches_per_iter: int, settle: Callable[[], None], tell: Callable[[], None]
    ) -> None:
        self._batches_per_iter, self._settle, self._tell = batches_per_iter, settle, tell
        self._steps = 0
        self.loss: Any = 0.0
        self.waited: float | None = 0.0
        self.groups: list[float] = []
        self.own_seconds = 0.0
        self._begin = self._group_begin = time.perf_counter()

    def count(self, loss: Any, waited: float | None) -> None:
        """A step is done: its loss, and the seconds that it waited for the exchange."""
        self._steps += 1
        whole = self._steps % self._batches_per_iter == 0
        if whole:
            self._settle()
        begin = time.perf_counter()
        if whole:
            self.groups.append(begin - self._group_begin)
            self._group_begin = begin
        self.loss = self.loss + loss
        self.waited = None if waited is None or self.waited is None else self.waited + waited
        self._tell()
        self.own_seconds += time.perf_counter() - begin

    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begin
