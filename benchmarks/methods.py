"""The ways of exchanging gradients that the benchmarks compare, described without a framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.errors import BenchError


class UnknownMethodError(BenchError):
    """A method that is not in METHODS; the message names those that are."""


def ring_bytes(width: int) -> Callable[[int, int], float]:
    """Bytes a worker sends in a ring allreduce of values `width` bytes wide.

    Returns a function of (workers M, coordinates d): 2 (M-1)/M d width, the least that any
    allreduce sends per worker (Patarasuk and Yuan 2009).
    """
    return lambda workers, coordinates: 2 * (workers - 1) / workers * coordinates * width


@dataclass(frozen=True)
class Method:
    """One row of the report.

    Attributes:
        name: as given to --methods.
        label: as shown.
        compression: the name in `hvd.Compression`.
        votes: whether the gradient becomes a verdict of -1, 0 or +1.
        learning_rate: of SGD; falls linearly to zero over the training.
        momentum: of SGD.
        payload: (workers, coordinates) -> bytes sent per worker and step, where the library does
            not count them; None: hvd.vote_stats() counts them.
    """

    name: str
    label: str
    compression: str
    votes: bool
    learning_rate: float
    momentum: float
    payload: Callable[[int, int], float] | None

    @property
    def optimizer(self) -> str:
        """The optimizer in words."""
        signal = "the verdict" if self.votes else "the mean gradient"
        return f"SGD on {signal}, learning rate {self.learning_rate:g}, momentum {self.momentum:g}"

    @property
    def payload_source(self) -> str:
        """Where the payload's figure comes from."""
        return "counted" if self.payload is None else "ring formula"


# Found by a short search, four epochs each, accuracy on 5,000 images held out of the training set.
# SGD, momentum 0.9: 0.02 89.2 %, 0.05 90.4, 0.1 90.9, 0.2 90.0. Vote, momentum 0.9: 5e-5 88.3,
# 1e-4 89.1, 2e-4 88.5, 5e-4 82.4; without momentum: 2e-4 85.9, 5e-4 88.5, 1e-3 89.0, 2e-3 87.2.
METHODS = {
    method.name: method
    for method in (
        Method("fp32", "Horovod fp32", "none", False, 0.1, 0.9, ring_bytes(4)),
        Method("fp16", "Horovod fp16", "fp16", False, 0.1, 0.9, ring_bytes(2)),
        Method("vote", "majority vote", "sign", True, 1e-4, 0.9, None),
    )
}
BASELINE = "fp32"


def chosen(names: Sequence[str]) -> list[Method]:
    """The methods of these names, each once. Raises UnknownMethodError."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise UnknownMethodError(
            f"unknown method {', '.join(map(repr, unknown)) or repr('')}: "
            f"expected a list of {', '.join(METHODS)}"
        )
    return [METHODS[name] for name in dict.fromkeys(names)]
