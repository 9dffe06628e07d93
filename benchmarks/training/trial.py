"""One method's training on one rank, and what its epochs cost, whatever the framework."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.data import IMAGES, TOKENS
from benchmarks.methods.catalogue import Method
from benchmarks.ranks.events import Events, Usage
from benchmarks.ranks.program import Config
from benchmarks.training.clock import Clock
from benchmarks.training.schedule import share_of_rate
from benchmarks.training.shapes import Shape
from benchmarks.training.tasks import Optimizer
from hvd_sign import vote_stats

EVALUATION_SAMPLES = {IMAGES: 100, TOKENS: 16}  # in a batch


class Trial(ABC):
    """One method's model and optimizer.

    Args:
        hvd: the framework's binding.
        method: of exchanging gradients.
        config: of the benchmark.
        samples: how many there are to train on, and to test on.
        events: gets `progress`, `epoch` and `replicas`.
    """

    def __init__(
        self,
        hvd: ModuleType,
        method: Method,
        config: Config,
        samples: tuple[int, int],
        events: Events,
    ) -> None:
        self.hvd, self.method, self.config, self.events = hvd, method, config, events
        self.wanted = Optimizer(**config["optimizers"][method.name])
        self._train_samples, self._test_samples = samples
        self._steps_done = 0

    @abstractmethod
    def shapes(self) -> list[Shape]:
        """Of the gradients."""

    @abstractmethod
    def state(self) -> Any:
        """A copy of weights and optimizer."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Makes weights and optimizer what they were."""

    @abstractmethod
    def set_learning_rate(self, rate: float) -> None:
        """Of the next steps."""

    @abstractmethod
    def step(self, rows: np.ndarray) -> tuple[Any, float | None]:
        """One step on these rows: its loss, and the seconds it waited for others, if known."""

    @abstractmethod
    def average_statistics(self) -> None:
        """Makes what is each worker's own, as batch norm's statistics, their mean."""

    @abstractmethod
    def right(self, rows: np.ndarray) -> tuple[float, float]:
        """How many answers for test rows are right, and how many were asked for."""

    @abstractmethod
    def weights(self) -> Iterator[np.ndarray]:
        """Every trained tensor."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Makes what is random in a step repeatable."""

    @abstractmethod
    def settle(self) -> None:
        """Returns when the device has done what it was asked for."""

    def warm_up(self) -> None:
        """Takes a few steps that are not measured, then forgets them."""
        before = self.state()
        for rows in self._order(epoch=0)[: self.config["warmup"]]:
            self.step(rows)
            self._tell()
        self.restore(before)

    def epoch(self, epoch: int) -> None:
        """Trains for one epoch, and tells its raw figures, averaged over the ranks."""
        # What dropout leaves out is the same for all methods.
        self.seed(self.config["seed"] + 1 + epoch * self.hvd.size() + self.hvd.rank())
        order = self._order(epoch)
        stats = vote_stats().asdict()
        total = self.config["epochs"] * self.config["steps"]
        self.hvd.barrier()
        before = Usage.now(self.config["interface"])
        clock = Clock(self.config["batches_per_iter"], self.settle, self._tell)
        for rows in order:
            share = share_of_rate(self._steps_done, total, self.config["rise"])
            self.set_learning_rate(self.wanted.learning_rate * share)
            loss, waited = self.step(rows)
            self._steps_done += 1
            clock.count(loss, waited)
        self.settle()
        self.hvd.barrier()
        seconds = clock.elapsed()
        used = Usage.now(self.config["interface"]).since(before)
        stats = {name: value - stats[name] for name, value in vote_stats().asdict().items()}
        figures = {
            "seconds": seconds,
            "harness_seconds": clock.own_seconds,
            "wait_seconds": clock.waited or 0.0,
            "payload_bytes": self._payload(len(order), stats["payload_bytes"]),
            "loss": float(clock.loss) / len(order),
            **asdict(used),
        }
        told = self._means(figures, "figures")
        if clock.waited is None:
            told["wait_seconds"] = None
        groups = self._means(dict(enumerate(clock.groups)), "groups")
        samples = self.config["batches_per_iter"] * self.config["batch"] * self.hvd.size()
        self.events.emit(
            "epoch",
            method=self.method.name,
            epoch=epoch,
            steps=len(order),
            **told,
            iterations=[samples / group for group in groups.values()],
            stats=self._means(stats, "stats") if self.method.group == "ours" else None,
            accuracy=self.accuracy(),
        )

    def accuracy(self) -> float | None:
        """The share of the test answers that are right; each rank looks at its part.

        None without test samples, and of workers whose weights differ on purpose.
        """
        if not self._test_samples or self.method.group == "alone":
            return None
        self.average_statistics()
        rows = np.arange(self.hvd.rank(), self._test_samples, self.hvd.size())
        size = EVALUATION_SAMPLES[self.config["kind"]]
        right = np.zeros(2)
        for first in range(0, len(rows), size):
            right += self.right(rows[first : first + size])
            self._tell()
        right = np.sum(self._gather(right, "right"), axis=0)
        return float(right[0] / right[1])

    def finish(self) -> None:
        """Tells whether all ranks hold bit for bit the same weights."""
        if self.method.group == "alone":
            return
        digest = hashlib.blake2b()
        for weight in self.weights():
            digest.update(np.ascontiguousarray(weight))
        every = self._gather(digest.hexdigest(), "digest")
        self.events.emit("replicas", method=self.method.name, equal=len(set(every)) == 1)

    def _payload(self, steps: int, counted: float) -> float:
        if self.method.payload is None:
            return counted
        return self.method.payload(self.hvd.size(), self.shapes()) * steps

    def _order(self, epoch: int) -> np.ndarray:
        """This rank's rows, int64[steps, batch]: a share of an order that is equal everywhere."""
        config, workers = self.config, self.hvd.size()
        rng = np.random.default_rng((config["seed"], epoch))
        used = config["steps"] * workers * config["batch"]
        order = rng.permutation(config["samples"])[:used] % self._train_samples
        return order.reshape(config["steps"], workers, config["batch"])[:, self.hvd.rank()]

    def _tell(self) -> None:
        self.events.progress(self.method.name, self._steps_done)

    def _means(self, figures: dict[Any, float], name: str) -> dict[Any, Any]:
        """Means over the ranks."""
        every = self._gather(list(figures.values()), name)
        return dict(zip(figures, np.mean(every, axis=0).tolist(), strict=True))

    def _gather(self, mine: Any, name: str) -> list[Any]:
        """Every rank's."""
        return list(self.hvd.allgather_object(mine, name=f"{self.method.name}.{name}"))
