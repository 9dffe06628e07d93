"""Which voters share a node, and messages between pairs of voters."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from hvd_sign.transports.base import Buffer, Pending


class Pairs(Protocol):
    """Messages from one voter to another, in order."""

    def send(self, buffer: Buffer, voter: int) -> Pending:
        """Sends ``buffer``, which must stay untouched until the communication has ended."""
        ...

    def receive(self, buffer: Buffer, voter: int) -> Pending:
        """Fills ``buffer`` with what ``voter`` sends, of the same size."""
        ...


class Nodes:
    """The nodes of a transport's voters, numbered by their lowest voter, who leads.

    Args:
        names: of each voter's node.
        rank: this voter.
        pairs: the transport's.

    Attributes:
        members: the voters of each node, ascending.
        node: this voter's node.
        local: this voter's number in its node.
    """

    def __init__(self, names: Sequence[Hashable], rank: int, pairs: Pairs) -> None:
        rows: dict[Hashable, list[int]] = {}
        for voter, name in enumerate(names):
            rows.setdefault(name, []).append(voter)
        self.members = [tuple(row) for row in rows.values()]
        self.node = list(rows).index(names[rank])
        self.local = self.members[self.node].index(rank)
        self.pairs = pairs

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The voters of this voter's node."""
        return self.members[self.node]

    @property
    def leaders(self) -> tuple[int, ...]:
        """The first voter of each node."""
        return tuple(row[0] for row in self.members)

    @property
    def leads(self) -> bool:
        """Whether this voter leads its node."""
        return self.local == 0

    @property
    def largest(self) -> int:
        """Voters in the largest node."""
        return max(map(len, self.members))

    def alltoall(self, group: Sequence[int], place: int, send: Buffer, recv: Buffer) -> Pending:
        """Sends the j-th of equal parts of ``send`` to the j-th of ``group``.

        Args:
            group: voters, this one among them.
            place: of this voter in the group.
            send: one part for each of the group, as has ``recv``.
            recv: filled; its own part is copied.
        """
        outgoing, incoming = send.reshape(len(group), -1), recv.reshape(len(group), -1)
        incoming[place] = outgoing[place]
        others = [j for j in range(len(group)) if j != place]
        return Together(
            [
                *(self.pairs.receive(incoming[j], group[j]) for j in others),
                *(self.pairs.send(outgoing[j], group[j]) for j in others),
            ]
        )

    def allgather(self, group: Sequence[int], place: int, send: Buffer, recv: Buffer) -> Pending:
        """Sends ``send`` to each of ``group``; ``recv`` has one part for each of them."""
        incoming = recv.reshape(len(group), -1)
        incoming[place] = send
        others = [j for j in range(len(group)) if j != place]
        return Together(
            [
                *(self.pairs.receive(incoming[j], group[j]) for j in others),
                *(self.pairs.send(send, group[j]) for j in others),
            ]
        )


class Together:
    """Several communications, ended when all have."""

    def __init__(self, parts: Sequence[Pending]) -> None:
        self._parts = parts

    def test(self) -> bool:
        """Whether all have ended; gives each of them its turn."""
        self._parts = [part for part in self._parts if not part.test()]
        return not self._parts
