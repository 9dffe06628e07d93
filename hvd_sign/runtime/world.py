"""The ranks that vote, as Horovod or our own runtime counts them, and the streams among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

from hvd_sign.core import process
from hvd_sign.core.process import load_mpi
from hvd_sign.engine.operations import GRADIENTS, VOTED
from hvd_sign.engine.progress import Stream
from hvd_sign.engine.stall import StallCheck
from hvd_sign.runtime.lifecycle import runtime
from hvd_sign.runtime.named import AdHocStream
from hvd_sign.runtime.serving import ServedSession
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign.transports import HorovodTransport, LocalTransport, NamedCollectives, Transport


class World:
    """Horovod's ranks, and the MPI processes behind them.

    Args:
        rank: this process's Horovod rank.
        mpi_ranks: for each Horovod rank its rank in MPI_COMM_WORLD (they differ after
            ``hvd.init(comm=...)``); None to vote over Horovod's own collectives.

    Attributes:
        over_horovod: votes travel over Horovod's own collectives.
    """

    def __init__(self, rank: int, mpi_ranks: Sequence[int] | None) -> None:
        self.rank = rank
        self.over_horovod = mpi_ranks is None
        self._mpi_ranks = mpi_ranks
        self._adhoc: dict[tuple[int, ...], AdHocStream] = {}
        self._sessions: list[VoteSession] = []
        self._runtime = runtime()

    @property
    def alive(self) -> bool:
        """Whether nobody has shut down the process's runtime since; another binding may have."""
        return not self._runtime.closed

    def stream(self, ranks: Sequence[int], collectives: NamedCollectives | None = None) -> Stream:
        """A new stream among Horovod ranks; collective over them.

        Args:
            ranks: Horovod's.
            collectives: Horovod's own among them, used where there is no MPI.

        Raises:
            ValueError: this rank is not one of ``ranks``.
        """
        return self._runtime.stream(self._transport(ranks, collectives), ranks)

    def adhoc(
        self, ranks: Sequence[int], collectives: NamedCollectives | None = None
    ) -> AdHocStream:
        """The stream of ad-hoc votes among Horovod ranks; collective over them at first use.

        Args:
            ranks: Horovod's.
            collectives: Horovod's own among them, used where there is no MPI.

        Raises:
            ValueError: this rank is not one of ``ranks``.
        """
        key = tuple(ranks)
        if key not in self._adhoc:
            transport = self._transport(ranks, collectives)
            self._adhoc[key] = self._runtime.adhoc_stream(transport)
            if collectives is not None:
                self._adhoc[key].clash = collectives.clash
        return self._adhoc[key]

    def opened(self, ranks: Sequence[int]) -> AdHocStream | None:
        """The stream of ad-hoc votes among Horovod ranks, if there is one; not collective."""
        return self._adhoc.get(tuple(ranks))

    def part(self) -> StallCheck:
        """Where all ranks will look for one another after a ``shutdown()`` that comes now."""
        everyone = next(iter(self._adhoc.values())).stalls
        everyone.meets = True
        return everyone

    def forget(self, ranks: Sequence[int]) -> None:
        """Lets go of the ad-hoc stream among ``ranks``: their process set is no more."""
        self._adhoc.pop(tuple(ranks), None)

    def session(
        self,
        ranks: Sequence[int],
        collectives: NamedCollectives | None,
        *args: Any,
        **kwargs: Any,
    ) -> VoteSession:
        """A new ``VoteSession`` on a stream of its own; collective over ``ranks``.

        Raises:
            DisagreementError: on all ranks alike: one of them was refused, or votes on nothing.
            RankLostError: a rank has left.
        """
        self.adhoc(ranks, collectives).open(GRADIENTS, method=VOTED)
        session = VoteSession(self.stream(ranks, collectives), *args, **kwargs)
        self._sessions.append(session)
        return session

    def end(self, session: VoteSession) -> None:
        """Ends a session that all its ranks have left together, and gives back what it held."""
        self._sessions.remove(session)
        self._runtime.end(session.stream)

    def serve(self) -> Served:
        """Begins to serve the votes of other ranks as one that has joined.

        Raises:
            RuntimeError: an optimizer votes over Horovod's collectives, which need every rank.
            VoteError: this is a forked child.
        """
        process.check_not_forked()
        for session in self._sessions:
            if not session.stream.transport.serves_joined:
                raise RuntimeError(
                    "join(): an optimizer votes over Horovod's own collectives, which need every "
                    "rank; start the job on MPI, or let all ranks take the same number of steps"
                )
        usable = [session for session in self._sessions if not session.stream.broken]
        served = [ServedSession(session) for session in usable]
        size = len(self._mpi_ranks) if self._mpi_ranks is not None else 1
        return Served(served, list(self._adhoc.values()), size)

    def _transport(self, ranks: Sequence[int], collectives: NamedCollectives | None) -> Transport:
        if self.rank not in ranks:
            raise ValueError(
                f"process_set: rank {self.rank} votes, but is not one of its ranks {list(ranks)}"
            )
        if len(ranks) == 1:
            return LocalTransport()
        if self._mpi_ranks is None:
            assert collectives is not None
            members = crc32(repr(list(ranks)).encode())
            prefix = f"hvd_sign.{members:08x}.{self._runtime.count(ranks)}"
            return HorovodTransport(collectives, list(ranks).index(self.rank), len(ranks), prefix)
        mpi = load_mpi()
        members = mpi.COMM_WORLD.Get_group().Incl([self._mpi_ranks[rank] for rank in ranks])
        communicator = mpi.COMM_WORLD.Create_group(members, self._runtime.count(ranks))
        return self._runtime.transport(communicator)


class Served:
    """The votes that a joined rank serves."""

    def __init__(
        self, sessions: Sequence[ServedSession], adhoc: Sequence[AdHocStream], size: int
    ) -> None:
        self._sessions = sessions
        self._size = size
        self._adhoc = adhoc
        for stream in adhoc:
            stream.leave()

    def wait(self, last_to_come: Callable[[], int]) -> int:
        """Blocks until all ranks have joined.

        Args:
            last_to_come: waits for all ranks; the rank that joined last by its count, which ranks
                that serve votes may have reached later than they began to serve.

        Returns:
            A rank that took the most steps: the one that came last if it is one.
        """
        try:
            return self._wait(last_to_come())
        finally:
            for stream in self._adhoc:
                stream.come_back()

    def _wait(self, last: int) -> int:
        for session in self._sessions:
            session.wait()
            steps = session.steps_of_all()
            # Sessions among fewer ranks number them otherwise.
            if len(steps) == self._size and steps[last] < max(steps):
                last = steps.index(max(steps))
        return last
