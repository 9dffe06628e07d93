"""Several collectives of one kind as one call: ranks agree once, and all or none are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hvd_sign.standalone.operations import Array, Broadcast, Collective
from hvd_sign.transports.communication import Pending

if TYPE_CHECKING:
    from mpi4py import MPI


class Group(Collective):
    """Collectives that run one after the other.

    Args:
        communicator: theirs.
        members: at least one; all of one kind.
    """

    def __init__(self, communicator: MPI.Intracomm, members: Sequence[Collective]) -> None:
        super().__init__(communicator)
        self.members = members

    def claim(self) -> dict[str, Any]:
        """How many, and what each of them claims."""
        claims = [member.claim() for member in self.members]
        joined = {key: ", ".join(str(claim[key]) for claim in claims) for key in claims[0]}
        return {"number of tensors": len(claims), **joined}

    def run(self) -> Iterator[Pending]:
        """Each in turn."""
        for member in self.members:
            yield from member.run()

    def result(self) -> list[Any]:
        """Each one's."""
        return [member.result() for member in self.members]


class AllGathers(Group):
    """Allgathers of several arrays."""

    kind = "allgather"


class ReduceScatters(Group):
    """Reducescatters of several arrays."""

    kind = "reducescatter"


class Broadcasts(Group):
    """Broadcasts of several arrays.

    Args:
        communicator: as for all.
        arrays: of this rank.
        root: whose are broadcast.
        names: of the arrays, which are to be the same on all ranks.
    """

    kind = "broadcast"

    def __init__(
        self, communicator: MPI.Intracomm, arrays: Sequence[Array], root: int, names: Sequence[str]
    ) -> None:
        super().__init__(communicator, [Broadcast(communicator, a, root) for a in arrays])
        self.names = names

    def claim(self) -> dict[str, Any]:
        """Their number, their names, and what each of them claims."""
        return {"number of tensors": len(self.names), "names": self.names, **super().claim()}
