"""Process sets: groups of ranks that exchange among themselves, as Horovod has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from hvd_sign.errors import NotInitializedError

if TYPE_CHECKING:
    from mpi4py import MPI


class ProcessSet:
    """Some of the ranks.

    Args:
        ranks_or_comm: their numbers, each once, in any order; or an mpi4py communicator of theirs,
            whose ranks are known once it was given to ``hvd.init()`` or ``hvd.add_process_set()``.

    Attributes:
        ranks: in ascending order; None while they are not known.
        mpi_comm: the communicator that it was made of; None: it was made of ranks.
        process_set_id: 0 for all ranks; None while it is not registered.

    Raises:
        ValueError: neither ranks nor a communicator; a rank twice, or one below zero; no ranks.
    """

    def __init__(self, ranks_or_comm: Iterable[int] | MPI.Intracomm) -> None:
        self.ranks: list[int] | None = None
        self.mpi_comm: MPI.Intracomm | None = None
        self.process_set_id: int | None = None
        self._own: int | None = None
        if isinstance(ranks_or_comm, Iterable):
            self.ranks = _checked(list(ranks_or_comm))
        else:
            self.mpi_comm = _communicator(ranks_or_comm)

    def register(self, number: int, ranks: list[int], own: int | None) -> None:
        """Notes its number, its ranks, and this process's place in it, if it has one."""
        self.process_set_id, self.ranks, self._own = number, ranks, own

    def forget(self) -> None:
        """Notes that it has been removed, or that the job is over."""
        self.process_set_id, self._own = None, None

    def size(self) -> int | None:
        """How many ranks; None: it is not registered."""
        return None if self.process_set_id is None else len(self.members())

    def rank(self) -> int | None:
        """This process's place in it; None: it is not registered.

        Raises:
            ValueError: this process is none of its ranks.
        """
        return None if self.process_set_id is None else self.place()

    def included(self) -> bool | None:
        """Whether this process is one of its ranks; None: these are not known yet.

        Raises:
            NotInitializedError: ``init()`` was not called.
        """
        return None if self.ranks is None else global_process_set.place() in self.ranks

    def members(self) -> list[int]:
        """Its ranks. Raises ValueError: it is not registered."""
        if self.process_set_id is None or self.ranks is None:
            raise ValueError(
                f"process_set: expected one that was given to hvd.init() or hvd.add_process_set(), "
                f"got {self}"
            )
        return self.ranks

    def place(self) -> int:
        """This process's place in it.

        Raises:
            ValueError: it is not registered, or this process is none of its ranks.
        """
        ranks = self.members()
        if self._own is None:
            raise ValueError(f"process_set: this process is none of its ranks {ranks}")
        return self._own

    def __str__(self) -> str:
        return (
            f"ProcessSet(process_set_id={self.process_set_id}, ranks={self.ranks}, "
            f"mpi_comm={self.mpi_comm})"
        )


class AllRanks(ProcessSet):
    """The process set of all ranks, which has its number before ``init()`` and after the end."""

    def __init__(self) -> None:
        self.mpi_comm = None
        self.forget()

    def forget(self) -> None:
        """Notes that the job is over."""
        self.process_set_id, self.ranks, self._own = 0, [], None

    def members(self) -> list[int]:
        """All ranks. Raises NotInitializedError: ``init()`` was not called."""
        if not self.ranks:
            raise NotInitializedError("hvd_sign has not been initialized; use hvd.init()")
        return self.ranks


def _checked(ranks: list[int]) -> list[int]:
    if not all(isinstance(rank, int) for rank in ranks):
        raise ValueError(f"ranks: expected integers or an mpi4py communicator, got {ranks}")
    if not ranks or len(set(ranks)) != len(ranks) or min(ranks) < 0:
        raise ValueError(f"ranks: expected some ranks, each once, got {ranks}")
    return sorted(ranks)


def _communicator(given: Any) -> MPI.Intracomm:
    from hvd_sign.core.process import load_mpi

    mpi = load_mpi()
    if not isinstance(given, mpi.Intracomm) or given == mpi.COMM_NULL:
        raise ValueError(f"ranks: expected integers or an mpi4py communicator, got {given!r}")
    return cast("MPI.Intracomm", given)


global_process_set = AllRanks()
