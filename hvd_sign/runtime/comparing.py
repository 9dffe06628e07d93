"""Whether ranks still have the same: checksums that they compare every so many steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any
from weakref import WeakMethod
from zlib import crc32

import numpy as np
import numpy.typing as npt

from hvd_sign.core.agreement import ranks_text
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Pending


class Comparison:
    """One small all-gather of checksums, in the order of a stream's votes.

    Args:
        transport: connects the ranks.
        every: it takes place at each step whose number this divides.
        names: what is compared, the same number on all ranks.
        checksums: a method that takes them, in [0, 2^64); it is not kept alive.

    Attributes:
        sentence: says what differs first, and between whom, the same on all ranks; None: nothing.
    """

    def __init__(
        self,
        transport: Transport,
        every: int,
        names: Sequence[str],
        checksums: Callable[[], Sequence[int]],
    ) -> None:
        self._transport = transport
        self._every = every
        self._names = [*names, "what the votes go on from"]
        self._checksums = WeakMethod(checksums)
        self._sent = np.zeros(1 + len(self._names), np.uint64)
        self._received = np.zeros((transport.size, 1 + len(self._names)), np.uint64)
        self.sentence: str | None = None

    def due(self, step: int) -> bool:
        """Whether it takes place at a step."""
        return step % self._every == 0

    def sums(self, common: Mapping[str, npt.NDArray[Any]]) -> list[int]:
        """This rank's checksums.

        Args:
            common: the session's ``common_state()``.
        """
        take = self._checksums()
        assert take is not None
        told = repr([(name, common[name].tolist()) for name in sorted(common)])
        return [*take(), crc32(told.encode())]

    def run(self, step: int, sums: Sequence[int] | None) -> Iterator[Pending]:
        """The comparison.

        Args:
            step: for the sentence.
            sums: of this rank, below 2^64; None: it has joined, and has nothing to compare.
        """
        self._sent[0] = sums is not None
        self._sent[1:] = 0 if sums is None else sums
        yield self._transport.allgather(
            self._sent.view(np.uint8), self._received.reshape(-1).view(np.uint8)
        )
        self.sentence = self._judged(step)

    def _judged(self, step: int) -> str | None:
        ranks = np.flatnonzero(self._received[:, 0])
        rows = self._received[ranks, 1:]
        differing = (rows != rows[:1]).any(axis=0)
        if not differing.any():
            return None
        first = int(differing.argmax())
        have: dict[int, list[int]] = {}
        for rank, number in zip(ranks.tolist(), rows[:, first].tolist(), strict=True):
            have.setdefault(number, []).append(rank)
        parts = "; ".join(f"{n:#018x} on {ranks_text(who)}" for n, who in have.items())
        more = int(differing.sum()) - 1
        also = f" ({more} more differ)" if more else ""
        return (
            f"check_every: ranks have diverged by step {step}: the checksum of "
            f"{self._names[first]}{also} differs between ranks: {parts}; broadcast parameters and "
            "the optimizer's state from one rank"
        )


def checksum(array: npt.NDArray[Any]) -> int:
    """Of an array's bits, in the order of its coordinates, in [0, 2^64)."""
    octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return int.from_bytes(blake2b(octets.data, digest_size=8).digest(), "little")


def options_text(options: Mapping[str, Any], without: Collection[str]) -> str:
    """What options say of numbers, names and switches, such as learning rates.

    Args:
        options: by name; numbers may be a framework's.
        without: names of those that do not count.
    """
    return repr(sorted((name, _plain(v)) for name, v in options.items() if name not in without))


def _plain(value: Any) -> str:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return repr(value) if isinstance(value, (bool, int, float, str, tuple, list)) else ""
