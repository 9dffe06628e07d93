"""What an exchange asks of a transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hvd_sign.link import LinkModel
    from hvd_sign.transports.nodes import Nodes

Buffer = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Pending(Protocol):
    """A communication under way."""

    def test(self) -> bool:
        """Whether it has ended; makes progress, never blocks."""
        ...


class Transport(Protocol):
    """Moves equal-sized messages among the voters of one stream.

    Attributes:
        rank: this voter's number.
        size: how many voters there are.
        link: constants of the cost model, if known; the same for all voters.
        nodes: which voters share a node, if the transport can tell.
    """

    rank: int
    size: int
    link: LinkModel | None
    nodes: Nodes | None

    def alltoall(self, send: Buffer, recv: Buffer) -> Pending:
        """Sends the j-th of ``size`` equal parts of ``send`` to voter j.

        Both buffers must stay untouched until the returned communication has ended.
        """
        ...

    def allgather(self, send: Buffer, recv: Buffer) -> Pending:
        """Sends ``send`` to everyone; ``recv`` is ``size`` times as long.

        Both buffers must stay untouched until the returned communication has ended.
        """
        ...

    def sum(self, send: Floats, recv: Floats) -> Pending:
        """Sums arrays of the same size over all voters; the sum is the same, bit for bit, on all.

        Both buffers must stay untouched until the returned communication has ended.
        """
        ...

    def gather_objects(self, value: Any) -> list[Any]:
        """Every voter's small object, in order of voters. Blocks."""
        ...

    def close(self, *, release: bool) -> None:
        """Ends its use.

        Args:
            release: give back what it holds; only if nothing is under way.
        """
        ...
