"""The process's runtime: MPI, the engine, and the streams that live on them.

MPI is initialised here with MPI_THREAD_MULTIPLE before Horovod starts, so that Horovod's shutdown
does not finalise it under us. If Horovod came first, our streams end before its shutdown does.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from hvd_sign import link, parting, process
from hvd_sign.adhoc import AdHocStream
from hvd_sign.agreement import REFUSED
from hvd_sign.alike import check_variables
from hvd_sign.calls import GRADIENTS, VOTED
from hvd_sign.engine import LONGEST_NAP, Engine, Stream
from hvd_sign.observe import observers
from hvd_sign.pipeline import ENGINE, Pipeline, Place, load_engine, threads
from hvd_sign.process import active_mpi, load_mpi, mpi_has_ended
from hvd_sign.session import ServedSession, VoteSession
from hvd_sign.stall import StallCheck
from hvd_sign.transports import (
    HorovodCollectives,
    HorovodTransport,
    LocalTransport,
    MpiTransport,
    Transport,
)

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("hvd_sign")

DRAIN_SECONDS = 30.0
"""How long a shutdown waits for votes that are under way."""

GOODBYE_SECONDS = 1.0
"""How long it waits for its last words to be on their way; on a sound network they are at once."""

CLOSED = "hvd_sign was shut down; call init() and build the optimizer anew"


_mpi_is_horovods = False


def leave_mpi_to_horovod() -> None:
    """Notes that Horovod initialised MPI, and will finalise it whenever any rank exits."""
    global _mpi_is_horovods
    _mpi_is_horovods = True


class Runtime:
    """The engine and the streams made since the last ``shutdown()``.

    It keeps the streams of optimizers that are gone, with their communicators and buffers: ranks
    drop optimizers at different moments, if at all, but give communicators back together; and a
    rank that keeps its optimizer may ``join()``, which every rank has to hear.
    """

    def __init__(self) -> None:
        self.engine = Engine()
        self._native: tuple[Any, Any] | None = None
        self._streams: list[Stream] = []
        self._made: Counter[tuple[int, ...]] = Counter()
        self._lock = threading.Lock()
        self.closed = False

    def stream(self, transport: Transport, members: Sequence[int]) -> Stream:
        """A stream for an optimizer's votes; collective over ``members``."""
        return self._keep(Stream(self.engine, transport, self.count(members)))

    def adhoc_stream(self, transport: Transport) -> AdHocStream:
        """A stream for votes called one by one; collective over the transport's voters."""
        stream = AdHocStream(self.engine, transport, 0)
        self._keep(stream)
        return stream

    def count(self, members: Sequence[int]) -> int:
        """How many streams the members have made together, this one included."""
        with self._lock:
            self._made[tuple(members)] += 1
            return self._made[tuple(members)]

    def transport(self, communicator: MPI.Intracomm) -> Transport:
        """The best transport over a communicator of our own; collective over it.

        Raises:
            DisagreementError: ranks differ in HVD_SIGN_ENGINE, or cannot obey it.
        """
        if communicator.Get_size() == 1:
            communicator.Free()
            return LocalTransport()
        transport = MpiTransport(communicator)
        module: Any = None
        claim = {ENGINE: os.environ.get(ENGINE, "auto")}
        try:
            module = load_engine(load_mpi())
        except (RuntimeError, ValueError) as error:
            claim = {REFUSED: str(error)}
        known = link.load_or_warn() if transport.rank == 0 else None
        everywhere = transport.gather_objects((claim, module is not None, known, Place.own()))
        claims, native, links, places = zip(*everywhere, strict=True)
        check_variables("votes over MPI", claims)
        transport.link = links[0]
        if all(native):
            with self._lock:
                if self._native is None:
                    crew = threads(places, transport.rank)
                    self._native = module, module.Engine(crew)
                    self.engine.nap = self._native[1].nap
            transport.pipeline = Pipeline(*self._native, communicator)
        elif module is not None:
            logger.warning("votes go through mpi4py: other ranks lack the native engine")
        return transport

    def _keep(self, stream: Stream) -> Stream:
        mpi = active_mpi()
        observers.open(mpi.COMM_WORLD.Get_rank() if mpi else stream.transport.rank)
        with self._lock:
            self._streams.append(stream)
        return stream

    def close(self, *, at_exit: bool = False) -> None:
        """Waits for the votes under way, then ends all streams and the progress thread.

        Args:
            at_exit: the program ends, on this rank at least.
        """
        self.closed = True
        drained = self.engine.drain(DRAIN_SECONDS)
        if not drained:
            logger.warning("shutdown: votes still under way after %g s are given up", DRAIN_SECONDS)
        self.engine.stop()
        if self._native is not None:
            self._native[1].stop()
        alive = not mpi_has_ended()
        if alive and not _mpi_is_horovods:
            self._say_goodbye(program=at_exit)
        for stream in self._streams:
            stream.close(CLOSED, release=drained and not at_exit and alive)
        self._streams.clear()
        if alive:
            parting.release()
        observers.flush()

    def abandon(self) -> None:
        """Leaves all as it is for good, in a forked child, which has none of the threads."""
        if self._native is not None:
            # The engine's end would wait for them.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._native[1]))

    def _say_goodbye(self, *, program: bool) -> None:
        for stream in self._streams:
            stream.say_goodbye(program=program)
        # Whoever leaves may not come to MPI again for long.
        deadline = time.monotonic() + GOODBYE_SECONDS
        while not all(stream.stalls.sent() for stream in self._streams):
            if time.monotonic() > deadline:
                return
            time.sleep(LONGEST_NAP)


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

    def stream(self, ranks: Sequence[int], collectives: HorovodCollectives | None = None) -> Stream:
        """A new stream among Horovod ranks; collective over them.

        Args:
            ranks: Horovod's.
            collectives: Horovod's own among them, used where there is no MPI.

        Raises:
            ValueError: this rank is not one of ``ranks``.
        """
        return self._runtime.stream(self._transport(ranks, collectives), ranks)

    def adhoc(
        self, ranks: Sequence[int], collectives: HorovodCollectives | None = None
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
        return self._adhoc[key]

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
        collectives: HorovodCollectives | None,
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

    def serve(self) -> Served:
        """Begins to serve the votes of other ranks as one that has joined.

        Raises:
            RuntimeError: an optimizer votes over Horovod's collectives, which need every rank.
            VoteError: this is a forked child.
        """
        process.check_not_forked()
        for session in self._sessions:
            if isinstance(session.stream.transport, HorovodTransport):
                raise RuntimeError(
                    "join(): an optimizer votes over Horovod's own collectives, which need every "
                    "rank; start the job on MPI, or let all ranks take the same number of steps"
                )
        served = [session.serve() for session in self._sessions]
        size = len(self._mpi_ranks) if self._mpi_ranks is not None else 1
        return Served(served, list(self._adhoc.values()), size)

    def _transport(self, ranks: Sequence[int], collectives: HorovodCollectives | None) -> Transport:
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


_runtime: Runtime | None = None
_lock = threading.Lock()


def runtime() -> Runtime:
    """The process's runtime, made at first use.

    Raises:
        VoteError: this is a forked child.
    """
    global _runtime
    process.check_not_forked()
    with _lock:
        if _runtime is None:
            process.begin()
            if not mpi_has_ended():
                parting.release()
            _runtime = Runtime()
            # Handlers run last in, first out: registered again, ours precedes Horovod's.
            atexit.unregister(_exit)
            atexit.register(_exit)
        return _runtime


def shutdown() -> None:
    """Waits for the votes under way and ends all streams; later votes need a new ``init()``.

    Collective: all ranks call it, as they call Horovod's.
    """
    _end()


def _exit() -> None:
    _end(at_exit=True)
    if not mpi_has_ended():
        parting.end()


def _end(*, at_exit: bool = False) -> None:
    global _runtime
    if process.forked():  # what there is, is the parent's
        return
    with _lock:
        ended, _runtime = _runtime, None
    if ended is not None:
        ended.close(at_exit=at_exit)


def _after_fork() -> None:
    if _runtime is not None:
        _runtime.abandon()


os.register_at_fork(after_in_child=_after_fork)
