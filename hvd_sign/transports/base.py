"""What an exchange asks of a transport, and what else a transport may be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from hvd_sign.transports.communication import (
    Buffer,
    Floats,
    Mailbox,
    NamedCollectives,
    Pairs,
    Pending,
)
from hvd_sign.transports.link import LinkModel
from hvd_sign.transports.native import NativeStream
from hvd_sign.transports.nodes import Nodes


class Transport(ABC):
    """Moves equal-sized messages among the voters of one stream.

    What it can do beside that it says by its attributes; nobody asks for its class.

    Attributes:
        rank: this voter's number.
        size: how many voters there are.
        link: constants of the cost model, if known; the same for all voters.
        nodes: which voters share a node, if it can tell.
        pairs: messages between pairs of voters, if it has them.
        relays: the native engine may run over it, Python moving its messages.
        native: the native engine's stream beside it, if all voters have one.
        collectives: what matches its operations by name, so that calls need no order; None: the
            order in which they begin does.
        prefix: begins the names of those operations.
        serves_joined: voters that have joined can serve the others' votes.
    """

    rank: int
    size: int
    link: LinkModel | None = None
    nodes: Nodes | None = None
    pairs: Pairs | None = None
    relays: bool = False
    native: NativeStream | None = None
    collectives: NamedCollectives | None = None
    prefix: str = ""
    serves_joined: bool = True

    @abstractmethod
    def alltoall(self, send: Buffer, recv: Buffer) -> Pending:
        """Sends the j-th of ``size`` equal parts of ``send`` to voter j.

        Both buffers must stay untouched until the returned communication has ended.
        """

    @abstractmethod
    def allgather(self, send: Buffer, recv: Buffer) -> Pending:
        """Sends ``send`` to everyone; ``recv`` is ``size`` times as long.

        Both buffers must stay untouched until the returned communication has ended.
        """

    @abstractmethod
    def sum(self, send: Floats, recv: Floats) -> Pending:
        """Sums arrays of the same size over all voters; the sum is the same, bit for bit, on all.

        Both buffers must stay untouched until the returned communication has ended.
        """

    @abstractmethod
    def gather_objects(self, value: Any) -> list[Any]:
        """Every voter's small object, in order of voters. Blocks."""

    def mailbox(self, tag: int = 1) -> Mailbox | None:
        """Small messages between pairs of voters, beside all else; None: it has none."""
        return None

    def named(self, name: str) -> Transport:
        """The transport of one call: itself, unless its operations are matched by name."""
        return self

    def close(self, *, release: bool) -> None:  # noqa: B027, most hold nothing
        """Ends its use.

        Args:
            release: give back what it holds; only if nothing is under way.
        """
