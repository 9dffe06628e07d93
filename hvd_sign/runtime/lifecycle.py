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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hvd_sign.core import process
from hvd_sign.core.agreement import REFUSED
from hvd_sign.core.alike import check_variables
from hvd_sign.core.observe import observers
from hvd_sign.core.process import active_mpi, load_mpi, mpi_has_ended
from hvd_sign.engine import parting
from hvd_sign.engine.progress import LONGEST_NAP, Engine, Stream
from hvd_sign.runtime.named import AdHocStream
from hvd_sign.transports import LocalTransport, MpiTransport, Transport, link
from hvd_sign.transports.native import (
    ENGINE,
    HostCores,
    MpiStream,
    RelayedStream,
    load_engine,
    threads,
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
        if transport.relays and transport.native is None:
            self.relay(transport)
        return self._keep(Stream(self.engine, transport, self.count(members)))

    def adhoc_stream(self, transport: Transport) -> AdHocStream:
        """A stream for votes called one by one; collective over the transport's voters."""
        stream = AdHocStream(self.engine, transport, 0)
        self._keep(stream)
        return stream

    def end(self, stream: Stream) -> None:
        """Ends a stream on which nothing is under way on any rank."""
        with self._lock:
            self._streams.remove(stream)
        stream.close("its optimizer votes on other parameters now", release=True)

    def count(self, members: Sequence[int]) -> int:
        """How many streams the members have made together, this one included."""
        with self._lock:
            self._made[tuple(members)] += 1
            return self._made[tuple(members)]

    def transport(self, communicator: MPI.Intracomm) -> Transport:
        """The best transport over a communicator of our own; collective over it.

        Raises:
            DisagreementError: ranks differ in HVD_SIGN_ENGINE, or cannot do what it says.
        """
        if communicator.Get_size() == 1:
            communicator.Free()
            return LocalTransport()
        transport = MpiTransport(communicator)
        if self._engine_for(transport):
            assert self._native is not None
            transport.native = MpiStream(*self._native, communicator)
        return transport

    def relay(self, transport: Transport) -> None:
        """Lets the native engine run over a transport of any kind; collective over its voters."""
        if self._engine_for(transport):
            assert self._native is not None
            transport.native = RelayedStream(*self._native, transport)

    def _engine_for(self, transport: Transport) -> bool:
        """Makes the native engine, once, if all voters have it; notes what is known of the link."""
        module: Any = None
        claim = {ENGINE: os.environ.get(ENGINE, "auto")}
        try:
            module = load_engine(load_mpi())
        except (RuntimeError, ValueError) as error:
            claim = {REFUSED: str(error)}
        known = link.load_or_warn() if transport.rank == 0 else None
        everywhere = transport.gather_objects((claim, module is not None, known, HostCores.own()))
        claims, native, links, places = zip(*everywhere, strict=True)
        check_variables("votes over MPI", claims)
        transport.link = links[0]
        if all(native):
            with self._lock:
                if self._native is None:
                    thread_count = threads(places, transport.rank)
                    self._native = module, module.Engine(thread_count)
                    self.engine.nap = self._native[1].nap
            return True
        if module is not None:
            logger.warning("votes go through Python: other ranks lack the native engine")
        return False

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
