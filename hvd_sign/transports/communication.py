"""A communication under way, and what is moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Buffer = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
"""float32 or float64."""

ALLREDUCE = "Horovod's allreduce"
GROUPED_ALLREDUCE = "Horovod's grouped allreduce"

NOBODYS_SHAPE = (1,) * 7
"""Of a tensor that is to be reduced with no other."""


class Pending(Protocol):
    """A communication under way."""

    def test(self) -> bool:
        """Whether it has ended; makes progress, never blocks."""
        ...


class Pairs(Protocol):
    """Messages from one voter to another, in order."""

    def send(self, buffer: Buffer, voter: int) -> Pending:
        """Sends ``buffer``, which must stay untouched until the communication has ended."""
        ...

    def receive(self, buffer: Buffer, voter: int) -> Pending:
        """Fills ``buffer`` with what ``voter`` sends, of the same size."""
        ...


class Together:
    """Several communications, ended when all have."""

    def __init__(self, parts: Sequence[Pending]) -> None:
        self._parts = parts

    def test(self) -> bool:
        """Whether all have ended; gives each of them its turn."""
        self._parts = [part for part in self._parts if not part.test()]
        return not self._parts


class Mailbox(Protocol):
    """Small messages between pairs of voters; keeps their order, never blocks."""

    def send(self, message: Any, voter: int) -> None:
        """Starts sending ``message``, which can be pickled, to ``voter``."""
        ...

    def receive(self) -> list[Any]:
        """All messages that have come since the last call. Raises VoteError: one is damaged."""
        ...

    def sent(self) -> bool:
        """Whether all messages are on their way."""
        ...


class NamedCollectives(Protocol):
    """Asynchronous operations of flat arrays, matched by name, as Horovod has them."""

    def alltoall(self, send: Buffer, name: str) -> Any:
        """Begins an all-to-all of equal parts; returns a handle."""
        ...

    def allgather(self, send: Buffer, name: str) -> Any:
        """Begins an all-gather of arrays of any lengths; returns a handle."""
        ...

    def sum(self, send: Floats, name: str) -> Any:
        """Begins an allreduce by sum; returns a handle."""
        ...

    def clash(self, op: str, name: str) -> None:
        """Begins what cannot be reduced with the ``ALLREDUCE`` of that name that others wait for.

        Does nothing if ``op``, what they wait for, is another one.
        """
        ...

    def poll(self, handle: Any) -> bool:
        """Whether the operation has ended."""
        ...

    def result(self, handle: Any) -> Any:
        """Waits for the operation; its result as one flat array."""
        ...
