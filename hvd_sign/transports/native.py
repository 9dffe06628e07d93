"""The native engine's streams: whether they can be had, by how many threads they pack."""

from __future__ import annotations

import logging
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hvd_sign._version import __version__
from hvd_sign.core.options import choose
from hvd_sign.core.process import mpi_name
from hvd_sign.transports.communication import Buffer, Pairs, Pending, Together

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("hvd_sign")

ENGINE = "HVD_SIGN_ENGINE"

MOST_THREADS = 8
"""Unless asked for: fewer fill the memory's bandwidth."""


def load_engine(mpi: Any) -> Any:
    """The compiled engine's module, or None, with a line in the log that says why.

    ``HVD_SIGN_ENGINE=python`` does without it; ``native`` insists on it.

    Raises:
        ValueError: HVD_SIGN_ENGINE is something else.
        RuntimeError: it is ``native``, but the engine cannot be used.
    """
    wanted = choose(
        ENGINE,
        os.environ.get(ENGINE, "auto"),
        ("auto", "native", "python"),
    )
    if wanted == "python":
        return None
    reason = None
    try:
        from hvd_sign import _engine
    except ImportError as error:
        reason = (
            f"it was not built, or does not load ({error}); install hvd_sign again with mpicxx on "
            "PATH"
        )
    else:
        running = mpi.Get_library_version().rstrip("\0")
        if _engine.__version__ != __version__:
            reason = f"it is of version {_engine.__version__}, hvd_sign of {__version__}"
        elif _engine.library_version().rstrip("\0") != running:
            engines = _engine.library_version().rstrip("\0")
            if mpi_name(engines) != mpi_name(running):
                engines, running = mpi_name(engines), mpi_name(running)
            reason = f"it runs on {engines}, but mpi4py on {running}; build both with the same MPI"
        else:
            return _engine
    if wanted == "native":
        raise RuntimeError(
            f"HVD_SIGN_ENGINE=native, but the native engine cannot be used: {reason}"
        )
    logger.warning("votes go through mpi4py, not through the native engine: %s", reason)
    return None


@dataclass(frozen=True)
class HostCores:
    """Where a rank runs: the host, the cores that it may use, and what HVD_SIGN_THREADS says."""

    host: str
    cores: frozenset[int]
    said: str | None

    @classmethod
    def own(cls) -> HostCores:
        """This process's."""
        affinity = getattr(os, "sched_getaffinity", None)
        cores = range(os.cpu_count() or 1) if affinity is None else affinity(0)
        return cls(socket.gethostname(), frozenset(cores), os.environ.get("HVD_SIGN_THREADS"))


def threads(places: Sequence[HostCores], rank: int) -> int:
    """How many threads pack and apply: HVD_SIGN_THREADS, else the cores that the rank was given.

    Args:
        places: of all ranks. Cores that several ranks may use are shared out among them.
        rank: whose threads.

    Raises:
        ValueError: HVD_SIGN_THREADS is not a number above 0, on any rank.
    """
    for number, place in enumerate(places):
        if place.said is not None and not (place.said.isdecimal() and int(place.said) > 0):
            raise ValueError(
                f"HVD_SIGN_THREADS: expected 1 or more, got {place.said!r} on rank {number}"
            )
    mine = places[rank]
    if mine.said is not None:
        return int(mine.said)
    sharing = sum(place.host == mine.host and bool(place.cores & mine.cores) for place in places)
    return max(1, min(len(mine.cores) // sharing, MOST_THREADS))


abandoned: list[Any] = []
"""What may still be written into, though nobody waits for it: kept until the process ends."""


class NativeStream(ABC):
    """A stream of the native engine, which moves its votes.

    Args:
        module: what ``load_engine()`` returned.
        engine: the process's native engine.
        stream: the engine's.

    Attributes:
        counts_payload: what it sends is counted by the engine alone.
        given_up: votes that nobody waits for, which the engine may yet read and write.
    """

    counts_payload = True

    def __init__(self, module: Any, engine: Any, stream: Any) -> None:
        self.module = module
        self._engine = engine
        self._stream = stream
        self.given_up: list[Any] = []

    def submit(self, vote: Any) -> Pending:
        """Queues a vote; returns what tells its end."""
        self._engine.submit(self._stream, vote)
        return self._pending(vote)

    def _pending(self, vote: Any) -> Pending:
        pending: Pending = vote
        return pending

    def close(self, *, release: bool) -> None:
        """Ends the stream; gives back what it holds if nothing is under way."""
        self._engine.close(self._stream)
        if release:
            self._release()
        else:
            abandoned.append(self)

    @abstractmethod
    def _release(self) -> None: ...


class MpiStream(NativeStream):
    """On two communicators of its own.

    Args:
        module: what ``load_engine()`` returned.
        engine: the process's native engine.
        communicator: duplicated twice; collective.
    """

    def __init__(self, module: Any, engine: Any, communicator: MPI.Intracomm) -> None:
        from mpi4py import MPI

        self._communicators = [communicator.Dup(), communicator.Dup()]
        addresses = [MPI._addressof(private) for private in self._communicators]
        super().__init__(module, engine, engine.open(*addresses))

    def _release(self) -> None:
        for communicator in self._communicators:
            communicator.Free()


class Mover(Protocol):
    """What a relayed stream asks of a transport."""

    size: int
    pairs: Pairs | None

    def alltoall(self, send: Buffer, recv: Buffer) -> Pending:
        """Sends the j-th of ``size`` equal parts of ``send`` to voter j."""
        ...

    def allgather(self, send: Buffer, recv: Buffer) -> Pending:
        """Sends ``send`` to everyone."""
        ...


class RelayedStream(NativeStream):
    """Over any transport: the engine packs, tallies and writes, Python begins what travels.

    Ballots and verdicts are begun in one order, the same on all voters: a segment's ballots, its
    verdict if others have to hear it, the next segment's ballots.

    Args:
        module: what ``load_engine()`` returned.
        engine: the process's native engine.
        transport: this stream's own.
    """

    counts_payload = False

    def __init__(self, module: Any, engine: Any, transport: Mover) -> None:
        self._relay = module.Relay(transport.size)
        super().__init__(module, engine, engine.open_relay(self._relay))
        self._transport = transport
        self._asked: tuple[deque[Any], deque[Any]] = deque(), deque()
        self._due = 0
        self._under_way: list[tuple[int, Pending]] = []

    def serve(self) -> None:
        """Begins what the engine asks for and tells it what has ended; never blocks."""
        for errand in self._relay.take():
            self._asked[errand[2]].append(errand)
        try:
            while self._asked[self._due]:
                ticket, kind, channel, out, into = self._asked[self._due].popleft()
                self._under_way.append((ticket, self._begin(kind, out, into)))
                self._due = int(channel == 0 and kind != "allgather")
            ended = [ticket for ticket, pending in self._under_way if pending.test()]
        except BaseException as error:
            self._relay.fail(f"{type(error).__name__}: {error}")
            raise
        self._under_way = [item for item in self._under_way if item[0] not in ended]
        for ticket in ended:
            self._relay.finish(ticket)

    def _begin(self, kind: str, out: list[Any], into: list[Any]) -> Pending:
        if kind == "alltoall":
            return self._transport.alltoall(out[0][1], into[0][1])
        if kind == "allgather":
            return self._transport.allgather(out[0][1], into[0][1])
        pairs = self._transport.pairs
        assert pairs is not None
        receiving = [pairs.receive(buffer, voter) for voter, buffer in into]
        return Together([*receiving, *(pairs.send(buffer, voter) for voter, buffer in out)])

    def _pending(self, vote: Any) -> Pending:
        return _Relayed(self, vote)

    def _release(self) -> None:
        """It holds nothing."""


class _Relayed:
    def __init__(self, stream: RelayedStream, vote: Any) -> None:
        self._stream = stream
        self._vote = vote

    def test(self) -> bool:
        self._stream.serve()
        return bool(self._vote.test())
