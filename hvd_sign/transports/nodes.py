"""Which ranks share a node, and messages between pairs of voters."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from hvd_sign.transports.communication import Buffer, Pairs, Pending, Together

if TYPE_CHECKING:
    from mpi4py import MPI


def names_of_nodes(communicator: MPI.Intracomm) -> list[Hashable]:
    """The name of each rank's node; collective.

    What HVD_SIGN_NODE says, else a number that ranks share who share memory, by MPI's word.
    """
    from mpi4py import MPI

    sharing = communicator.Split_type(MPI.COMM_TYPE_SHARED)
    first = sharing.bcast(communicator.Get_rank())
    sharing.Free()
    return list(communicator.allgather(os.environ.get("HVD_SIGN_NODE") or int(first)))


class NodeMap:
    """Ranks by node; the nodes are numbered by their lowest rank.

    Args:
        names: of each rank's node.
        rank: this one.

    Attributes:
        members: the ranks of each node, ascending.
        node: this rank's node.
        local: this rank's number in its node.
    """

    def __init__(self, names: Sequence[Hashable], rank: int) -> None:
        rows: dict[Hashable, list[int]] = {}
        for other, name in enumerate(names):
            rows.setdefault(name, []).append(other)
        self.members = [tuple(row) for row in rows.values()]
        self.node = list(rows).index(names[rank])
        self.local = self.members[self.node].index(rank)


class Nodes(NodeMap):
    """The nodes of a transport's voters; the lowest voter of each leads it.

    Args:
        names: of each voter's node.
        rank: this voter.
        pairs: the transport's.
    """

    def __init__(self, names: Sequence[Hashable], rank: int, pairs: Pairs) -> None:
        super().__init__(names, rank)
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
