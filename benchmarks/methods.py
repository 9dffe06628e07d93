"""The ways of exchanging gradients that the benchmarks compare, described without a framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        learning_rates: of SGD, by data set; they fall linearly to zero over the training.
        momentum: of SGD.
        payload: (workers, coordinates) -> bytes sent per worker and step, where the library does
            not count them; None: hvd.vote_stats() counts them.
    """

    name: str
    label: str
    compression: str
    votes: bool
    learning_rates: Mapping[str, float]
    momentum: float
    payload: Callable[[int, int], float] | None

    def optimizer(self, data: str) -> str:
        """The optimizer on a data set, in words."""
        signal = "the verdict" if self.votes else "the mean gradient"
        rate = self.learning_rates[data]
        return f"SGD on {signal}, learning rate {rate:g}, momentum {self.momentum:g}"

    @property
    def payload_source(self) -> str:
        """Where the payload's figure comes from."""
        return "counted" if self.payload is None else "ring formula"


# Found by a short search, accuracy on images held out of the training set.
# Fashion-MNIST, 4 epochs. SGD, momentum 0.9: 0.02 89.2 %, 0.05 90.4, 0.1 90.9, 0.2 90.0. Vote,
# momentum 0.9: 5e-5 88.3, 1e-4 89.1, 2e-4 88.5, 5e-4 82.4; without: 2e-4 85.9, 5e-4 88.5,
# 1e-3 89.0, 2e-3 87.2. Digits, 20 epochs, momentum 0.9. SGD: 0.005 88.5, 0.01 92.0, 0.02 93.0,
# 0.05 95.0, 0.1 diverges. Vote: 5e-5 91.0, 1e-4 91.5, 2e-4 90.5.
MEAN_RATES = {"fashion-mnist": 0.1, "digits": 0.05}
VOTE_RATES = {"fashion-mnist": 1e-4, "digits": 1e-4}
METHODS = {
    method.name: method
    for method in (
        Method("fp32", "Horovod fp32", "none", False, MEAN_RATES, 0.9, ring_bytes(4)),
        Method("fp16", "Horovod fp16", "fp16", False, MEAN_RATES, 0.9, ring_bytes(2)),
        Method("vote", "majority vote", "sign", True, VOTE_RATES, 0.9, None),
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
