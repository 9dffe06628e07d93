"""Whose ranks a binding votes among: Horovod's, or those of our own MPI runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from hvd_sign.core import process
from hvd_sign.core.alike import TRANSPORT, callers, check_alike, check_variables
from hvd_sign.core.launch import check_launcher, check_not_a_copy
from hvd_sign.core.options import choose
from hvd_sign.engine.operations import ADDED, PROCESS_SETS, REMOVED
from hvd_sign.engine.stall import StallCheck
from hvd_sign.errors import NotInitializedError
from hvd_sign.runtime import lifecycle
from hvd_sign.runtime.named import AdHocStream
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign.runtime.world import World
from hvd_sign.standalone import ranks as standalone
from hvd_sign.transports.communication import NamedCollectives

HOROVOD = "horovod"
MPI = "mpi"
NOT_ON_MPI = -1
"""The number of a rank that votes over Horovod's collectives."""


class Backend(Protocol):
    """The ranks of a binding, from ``init()`` to ``shutdown()``.

    Attributes:
        runtime: ``"horovod"`` or ``"mpi"``.
    """

    runtime: str

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Starts the ranks and the vote; collective over them."""
        ...

    def shutdown(self) -> None:
        """Waits for the votes under way and ends it all; collective over the ranks."""
        ...

    def rank(self) -> int:
        """This process's number."""
        ...

    def members(self, process_set: Any) -> Sequence[int]:
        """The ranks of a process set. Raises ValueError: it is not registered."""
        ...

    def adhoc(self, process_set: Any) -> AdHocStream:
        """The stream of calls made one by one among a process set."""
        ...

    def session(self, process_set: Any, *args: Any, **kwargs: Any) -> VoteSession:
        """A new session of votes among a process set; collective over it."""
        ...

    def end(self, session: VoteSession) -> None:
        """Ends a session that all its ranks have left together."""
        ...

    def dense(self, op: str, process_set: Any, name: str | None) -> AbstractContextManager[None]:
        """Within it this rank waits for an operation without a vote.

        Args:
            op: what it is, ``ALLREDUCE`` or ``GROUPED_ALLREDUCE``.
            process_set: among whom.
            name: the operation's.
        """
        ...

    def add_process_set(self, process_set: Any) -> Any:
        """Registers a process set, ready for votes; collective over all ranks."""
        ...

    def remove_process_set(self, process_set: Any) -> bool:
        """Takes a process set back; collective over all ranks."""
        ...

    def join(self, *args: Any) -> int:
        """Serves the other ranks until all have joined; returns the rank that joined last."""
        ...


class HorovodBackend:
    """Horovod's ranks: MPI first, then Horovod, then ours; and back.

    Args:
        horovod: the framework's module, such as ``horovod.torch``.
        collectives: makes a process set's asynchronous operations, for votes that travel over them.
        gather: every rank's number, by Horovod's allgather.
    """

    runtime = HOROVOD

    def __init__(
        self,
        horovod: Any,
        collectives: Callable[[Any], NamedCollectives],
        gather: Callable[[int], list[int]],
    ) -> None:
        self._horovod = horovod
        self._collectives = collectives
        self._gather = gather
        self._world: World | None = None
        self._parted: StallCheck | None = None
        self._reducing: set[tuple[int, ...]] = set()

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Starts MPI, Horovod and the vote; takes the arguments of Horovod's ``init``.

        Collective over all ranks. May be called after Horovod's own ``init()``, and again after
        ``shutdown()``.

        Raises:
            ValueError: ranks differ in an environment variable that must be the same, or it holds
                something else.
            RuntimeError: MPI cannot be used, or Horovod sees none of the other ranks; the message
                says why and what helps.
            VoteError: this is a forked child.
            RankLostError: after ``shutdown()``, another rank's program has ended since.
        """
        process.check_not_forked()
        check_launcher()
        horovod = self._horovod
        alive = self._world is not None and self._world.alive
        transport = os.environ.get(TRANSPORT, "auto")
        gloo = os.environ.get("HOROVOD_CONTROLLER", "").lower() == "gloo"
        on_mpi = transport == "mpi" or (transport == "auto" and not gloo)
        if horovod.is_initialized() and "mpi4py.MPI" not in sys.modules:
            lifecycle.leave_mpi_to_horovod()
        if on_mpi or not gloo:
            # Also where votes do not need it: Horovod's shutdown would end what Horovod began.
            process.load_mpi()
        if self._parted is not None and not args and kwargs.keys() <= {"process_sets"}:
            self._parted.come_back()
        self._parted = None
        if (on_mpi or not gloo) and not alive:
            self._check_alike(kwargs.get("comm", args[0] if args else None))
        choose(TRANSPORT, transport, ("auto", "mpi", "horovod"))
        horovod.init(*args, **kwargs)
        if alive:
            return
        self._reducing.clear()
        mpi = process.active_mpi()
        everyone = 1 if mpi is None else mpi.COMM_WORLD.Get_size()
        check_not_a_copy(max(horovod.size(), everyone), "Horovod")
        self._world = World(horovod.rank(), self._mpi_ranks(on_mpi=on_mpi))
        self._open_adhoc(horovod.global_process_set)
        for process_set in kwargs.get("process_sets") or (args[1:2] or [()])[0] or ():
            if isinstance(process_set, horovod.ProcessSet):
                self._open_adhoc(process_set)

    def shutdown(self) -> None:
        """Waits for the votes under way, then shuts Horovod down. Collective over all ranks."""
        if self._world is not None and self._world.alive:
            self._parted = self._world.part()
        lifecycle.shutdown()
        self._world = None
        self._horovod.shutdown()

    @property
    def world(self) -> World:
        """The ranks that ``init()`` found.

        Raises:
            NotInitializedError: ``init()`` was not called.
        """
        if self._world is None:
            raise NotInitializedError("hvd_sign has not been initialized; use hvd.init()")
        return self._world

    @property
    def votes_over_horovod(self) -> bool:
        """Whether votes travel over Horovod's own collectives; the same on all ranks."""
        return self._world is not None and self._world.over_horovod

    def rank(self) -> int:
        """Horovod's."""
        return int(self._horovod.rank())

    def members(self, process_set: Any) -> Sequence[int]:
        """The Horovod ranks of a process set.

        Raises:
            ValueError: the process set has not been added to Horovod.
        """
        if process_set is self._horovod.global_process_set:
            return range(self._horovod.size())
        if process_set.process_set_id is None:
            raise ValueError(
                f"process_set: expected one that was given to hvd.init() or "
                f"hvd.add_process_set(), got {process_set}"
            )
        return list(process_set.ranks)

    def adhoc(self, process_set: Any) -> AdHocStream:
        """The stream of votes called one by one; collective over the set at first use."""
        return self.world.adhoc(self.members(process_set), self._collectives(process_set))

    def session(self, process_set: Any, *args: Any, **kwargs: Any) -> VoteSession:
        """A new session of votes; collective over the process set."""
        collectives = self._collectives(process_set)
        return self.world.session(self.members(process_set), collectives, *args, **kwargs)

    def end(self, session: VoteSession) -> None:
        """Ends a session that all its ranks have left together."""
        self.world.end(session)

    def add_process_set(self, process_set: Any) -> Any:
        """Horovod's ``add_process_set``, ready for votes. Collective over all ranks.

        Raises:
            RankLostError: a rank has left.
        """
        self._meet(change=ADDED)
        added = self._horovod.add_process_set(process_set)
        if self._world is not None:
            self._open_adhoc(added)
        return added

    def remove_process_set(self, process_set: Any) -> bool:
        """Horovod's ``remove_process_set``. Collective over all ranks.

        Raises:
            RankLostError: a rank has left.
        """
        self._meet(change=REMOVED)
        ranks = process_set.ranks
        removed = bool(self._horovod.remove_process_set(process_set))
        if removed and self._world is not None and ranks is not None:
            self._world.forget(ranks)
        return removed

    def join(self, *args: Any) -> int:
        """Serves the other ranks until all have joined: a joined rank abstains in every vote.

        Collective over all ranks. As after Horovod's ``join``, parameters of ranks that joined
        early are out of date: broadcast them from the returned rank.

        Args:
            args: of the framework's ``join``.

        Returns:
            The rank that joined last.
        """
        served = self.world.serve()
        return served.wait(lambda: int(self._horovod.join(*args)))

    def _check_alike(self, comm: Any) -> None:
        """Raises DisagreementError if ranks differ in what they go by; collective over them."""
        world = process.load_mpi().COMM_WORLD
        if self._horovod.is_initialized() and self._horovod.size() != world.Get_size():
            # Somebody else has told Horovod who takes part.
            comm = self._mpi_ranks(on_mpi=True)
            if comm is None:
                return
        if isinstance(comm, Sequence) and comm and world.Get_rank() not in comm:
            return  # which Horovod has words for
        with callers(comm) as communicator:
            check_alike(communicator, self.runtime)

    def _mpi_ranks(self, *, on_mpi: bool) -> list[int] | None:
        """The ranks' numbers in MPI_COMM_WORLD; None: votes travel over Horovod's collectives.

        Collective over Horovod's ranks.

        Args:
            on_mpi: this rank would vote over MPI.
        """
        if self._horovod.size() == 1:
            return None
        ranks = self._gather(process.load_mpi().COMM_WORLD.Get_rank() if on_mpi else NOT_ON_MPI)
        check_variables(
            "hvd.init()",
            [{TRANSPORT: HOROVOD if rank == NOT_ON_MPI else MPI} for rank in ranks],
        )
        if not on_mpi:
            return None
        # Processes that no MPI launcher started are each rank 0 of a world of their own.
        if len(set(ranks)) == len(ranks):
            return list(ranks)
        if os.environ.get(TRANSPORT) == "mpi":
            raise RuntimeError(
                "HVD_SIGN_TRANSPORT=mpi, but the ranks were not started by MPI; use mpirun, "
                "srun --mpi=pmix or horovodrun --mpi"
            )
        return None

    def open_dense(self, process_set: Any, *, once: bool = False) -> None:
        """Asked before Horovod first reduces gradients: all ranks are to do so, none votes.

        Args:
            process_set: whose gradients.
            once: until ``shutdown()`` to ask once is enough for the process set.

        Raises:
            DisagreementError: on all ranks alike: some ranks vote on their gradients.
            RankLostError: a rank has left.
        """
        members = tuple(self.members(process_set))
        if self._world is None or not self._world.alive or self.rank() not in members:
            return
        if not once or members not in self._reducing:
            self._reducing.add(members)
            self.adhoc(process_set).open_dense()

    def dense(self, op: str, process_set: Any, name: str | None) -> AbstractContextManager[None]:
        """Within it this rank waits for Horovod; ranks that vote under the same name hear of that.

        Args:
            op: what it is, ``ALLREDUCE`` or ``GROUPED_ALLREDUCE``.
            process_set: among whom.
            name: the operation's; without one nobody can mean it.
        """
        stream = None
        if name is not None and self._world is not None and self._world.alive:
            # Not made here, which is collective: Horovod's operations need no such order.
            stream = self._world.opened(self.members(process_set))
        if name is None or stream is None:
            return nullcontext()
        return stream.waiting_elsewhere(name, op)

    def _meet(self, **claim: Any) -> None:
        """Waits, where anybody votes, until all ranks have come to change the process sets."""
        if self._world is not None and self._world.alive:
            self.adhoc(self._horovod.global_process_set).open(PROCESS_SETS, **claim)

    def _open_adhoc(self, process_set: Any) -> None:
        # Now, since all ranks are here: at first use ranks might come in different orders.
        if self.rank() in self.members(process_set):
            self.adhoc(process_set)


class StandaloneBackend:
    """The ranks that an MPI launcher started, without Horovod."""

    runtime = MPI

    def init(self, *args: Any, **kwargs: Any) -> None:
        """See ``hvd_sign.standalone.ranks.init``."""
        standalone.init(*args, **kwargs)

    def shutdown(self) -> None:
        """Waits for what is under way and ends it all. Collective over all ranks."""
        standalone.shutdown()

    def rank(self) -> int:
        """This process's number."""
        return standalone.rank()

    def members(self, process_set: Any) -> Sequence[int]:
        """The ranks of a process set. Raises ValueError: it is not registered."""
        return standalone.ranks().members(process_set)

    def adhoc(self, process_set: Any) -> AdHocStream:
        """The stream of calls of a process set."""
        return standalone.ranks().stream(process_set)

    def session(self, process_set: Any, *args: Any, **kwargs: Any) -> VoteSession:
        """A new session of votes; collective over the process set."""
        ranks = standalone.ranks()
        return ranks.world.session(ranks.members(process_set), None, *args, **kwargs)

    def end(self, session: VoteSession) -> None:
        """Ends a session that all its ranks have left together."""
        standalone.ranks().world.end(session)

    def dense(self, op: str, process_set: Any, name: str | None) -> AbstractContextManager[None]:
        """Nothing: votes or not, the ranks agree on our own operations by name."""
        return nullcontext()

    def add_process_set(self, process_set: Any) -> Any:
        """Registers a process set. Collective over all ranks."""
        return standalone.add_process_set(process_set)

    def remove_process_set(self, process_set: Any) -> bool:
        """Takes a process set back. Collective over all ranks."""
        return standalone.remove_process_set(process_set)

    def join(self, *args: Any) -> int:
        """See ``hvd_sign.standalone.ranks.join``."""
        return standalone.join()
