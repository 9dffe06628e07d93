"""Who takes part: ``init()``, ranks by job and by node, process sets and their streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from hvd_sign.core import process
from hvd_sign.core.alike import callers, check_alike
from hvd_sign.core.launch import check_launcher, check_not_a_copy
from hvd_sign.engine.operations import ADDED, PROCESS_SETS, REMOVED, Opening
from hvd_sign.engine.progress import Handle
from hvd_sign.engine.stall import StallCheck
from hvd_sign.errors import NotInitializedError, VoteError
from hvd_sign.runtime import lifecycle
from hvd_sign.runtime.named import AdHocStream
from hvd_sign.runtime.world import World
from hvd_sign.standalone.operations import Collective
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.registering import agree
from hvd_sign.standalone.timeline import timeline
from hvd_sign.transports.nodes import NodeMap, names_of_nodes

if TYPE_CHECKING:
    from mpi4py import MPI


JOIN = "join()"
"""The name of the call by which ranks that have joined hear of those that leave."""
JOINED = 1
"""The tag of what tells that a rank has joined."""
Kind = TypeVar("Kind", bound=Collective)
LOOKS = 10
NAP = 1e-3
"""Seconds between two looks at whether all ranks have joined."""


class CollectiveHandle(NamedTuple, Generic[Kind]):
    """A collective under way.

    Attributes:
        collective: what was enqueued.
        handle: of its end.
    """

    collective: Kind
    handle: Handle

    def result(self) -> Any:
        """Waits for the end; what the collective gives this rank."""
        self.handle.wait()
        return self.collective.result()


class Ranks:
    """The job's ranks, from ``init()`` to ``shutdown()``. Making it is collective over them.

    Args:
        communicator: of all ranks; duplicated.

    Attributes:
        world: the votes among them.
    """

    def __init__(self, communicator: MPI.Intracomm) -> None:
        mpi = process.load_mpi()
        self._communicator = communicator.Dup()
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        nodes = NodeMap(names_of_nodes(self._communicator), self.rank)
        self.local_rank = nodes.local
        self.local_size = len(nodes.members[nodes.node])
        across = sorted(row[self.local_rank] for row in nodes.members if len(row) > self.local_rank)
        self.cross_rank = across.index(self.rank)
        self.cross_size = len(across)
        self.homogeneous = len(set(map(len, nodes.members))) == 1
        places = self._communicator.allgather(mpi.COMM_WORLD.Get_rank())
        self.world = World(self.rank, places)
        self._sets: dict[int, ProcessSet] = {}
        self._communicators: dict[int, MPI.Intracomm] = {}
        self._numbers = 0
        self._register(list(range(self.size)), global_process_set)

    def add(self, process_sets: Sequence[ProcessSet]) -> None:
        """Registers process sets; collective over all ranks.

        Raises:
            ValueError: what ``agree()`` raises; on all ranks alike.
            RankLostError: a rank has left.
            VoteError: this is a forked child.
        """
        process.check_not_forked()
        self.stream(global_process_set).open(PROCESS_SETS, change=ADDED)
        agreed = agree(self._communicator, process_sets, self._sets.values())
        for ranks, process_set in agreed:
            self._register(ranks, process_set)

    def _register(self, ranks: list[int], process_set: ProcessSet) -> None:
        included = self.rank in ranks
        part = cast("MPI.Intracomm", self._communicator.Split(int(not included), self.rank))
        number, self._numbers = self._numbers, self._numbers + 1
        process_set.register(number, ranks, ranks.index(self.rank) if included else None)
        self._sets[number] = process_set
        if included:
            self._communicators[number] = part
            self.stream(process_set)
        else:
            part.Free()

    def remove(self, process_set: ProcessSet) -> bool:
        """Takes a process set back; collective over all ranks.

        Returns:
            False: it is not registered, or that of all ranks.

        Raises:
            ValueError: ranks differ in it; then on all ranks.
            RankLostError: a rank has left.
            VoteError: this is a forked child.
        """
        process.check_not_forked()
        self.stream(global_process_set).open(
            PROCESS_SETS, change=REMOVED, ranks=process_set.ranks, number=process_set.process_set_id
        )
        number = process_set.process_set_id
        if not number or self._sets.get(number) is not process_set:
            return False
        ranks = process_set.members()
        del self._sets[number]
        process_set.forget()
        communicator = self._communicators.pop(number, None)
        if communicator is not None:
            self.world.forget(ranks)
            communicator.Free()
        return True

    def process_set(self, number: int) -> ProcessSet:
        """The process set of a number. Raises ValueError: there is none."""
        if number not in self._sets:
            raise ValueError(
                f"process_set_id: expected one of {sorted(self._sets)}, got {number!r}"
            )
        return self._sets[number]

    def communicator(self, process_set: ProcessSet) -> MPI.Intracomm:
        """Of the collectives of a process set. Raises ValueError: this process is not in it."""
        process_set.place()
        assert process_set.process_set_id is not None
        return self._communicators[process_set.process_set_id]

    def stream(self, process_set: ProcessSet) -> AdHocStream:
        """Of the calls of a process set. Raises ValueError: this process is not in it."""
        process_set.place()
        return self.world.adhoc(process_set.members())

    def members(self, process_set: ProcessSet) -> list[int]:
        """The ranks of a process set. Raises ValueError: it is not registered."""
        return process_set.members()

    def last_to_come(self, met: Handle) -> int:
        """The rank that calls this last; collective over all ranks, which sleep until then.

        Args:
            met: ends when all have come, or with an error when one cannot.
        """
        arrivals = np.zeros(1, np.int64)
        last = np.zeros(1, np.int64)
        if self.rank == 0:
            # Whoever rank 0 waits for came after it.
            for _ in range(self.size - 1):
                waited = not self._arrived()
                sleep_until(self._communicator.Irecv(arrivals, tag=JOINED), met)
                if waited:
                    last[:] = arrivals
        else:
            arrivals[:] = self.rank
            sleep_until(self._communicator.Isend(arrivals, 0, tag=JOINED), met)
        sleep_until(self._communicator.Ibcast(last, 0), met)
        return int(last[0])

    def _arrived(self) -> bool:
        # The first look may only make MPI fetch what is there.
        return any(self._communicator.Iprobe(tag=JOINED) for _ in range(LOOKS))

    def close(self) -> None:
        """Lets go of all; the runtime has been shut down."""
        for process_set in self._sets.values():
            process_set.forget()
        for communicator in (*self._communicators.values(), self._communicator):
            communicator.Free()


def sleep_until(request: MPI.Request, met: Handle) -> None:
    """Waits for a communication without keeping the processor busy.

    Args:
        request: of it.
        met: ends well before it does, or with an error that is raised.
    """
    try:
        while not request.Test():
            if met.done():
                met.wait()
            time.sleep(NAP)
    except VoteError:
        _given_up.append(request)  # MPI may yet write to its buffer
        raise


_given_up: list[MPI.Request] = []
"""What nobody waits for any more."""


_ranks: Ranks | None = None
_parted: StallCheck | None = None


def init(
    comm: MPI.Intracomm | Sequence[int] | None = None,
    process_sets: Iterable[ProcessSet | Iterable[int]] | str | None = None,
) -> None:
    """Starts MPI, where nobody has, and finds the ranks. Collective over them; once is enough.

    Args:
        comm: an mpi4py communicator of the ranks that take part; None: MPI_COMM_WORLD. Or a list
            of ranks of MPI_COMM_WORLD; an empty one: all.
        process_sets: registered at once; ``"dynamic"``, as for Horovod: none yet.

    Raises:
        ValueError: ``comm`` or ``process_sets`` is something else; or, on all ranks alike, process
            sets that cannot be registered, or an environment variable that differs.
        RuntimeError: MPI cannot be used, or sees none of the other ranks; the message says why and
            what helps.
        RankLostError: after ``shutdown()``, another rank's program has ended since.
        VoteError: this is a forked child.
    """
    global _ranks, _parted
    process.check_not_forked()
    if _ranks is not None:
        if _ranks.world.alive:
            return
        _ranks.close()
    if isinstance(process_sets, str):
        if process_sets.lower() != "dynamic":
            raise ValueError(
                f"process_sets: expected some process sets or 'dynamic', got {process_sets!r}"
            )
        process_sets = None
    wanted = [as_process_set(some) for some in process_sets or ()]
    check_launcher()
    mpi = process.load_mpi()
    check_not_a_copy(mpi.COMM_WORLD.Get_size(), "MPI")
    if _parted is not None and comm is None:
        _parted.come_back()
    _parted = None
    with callers(comm) as communicator:
        check_alike(communicator, "mpi")
        _ranks = Ranks(communicator)
    if isinstance(comm, mpi.Intracomm):
        global_process_set.mpi_comm = comm
    if _ranks.rank == 0:
        timeline.open_as_asked()
    _ranks.add(wanted)


def shutdown() -> None:
    """Waits for what is under way and ends it all. Collective over all ranks."""
    global _ranks, _parted
    ended, _ranks = _ranks, None
    if ended is not None and not process.forked():
        if ended.world.alive:
            _parted = ended.world.part()
        lifecycle.shutdown()
        ended.close()
        timeline.close()


def is_initialized() -> bool:
    """Whether ``init()`` was called, and not ``shutdown()`` after it."""
    return _ranks is not None


def ranks() -> Ranks:
    """The job's ranks.

    Raises:
        NotInitializedError: ``init()`` was not called.
    """
    if _ranks is None:
        raise NotInitializedError("hvd_sign has not been initialized; use hvd.init()")
    return _ranks


def rank() -> int:
    """This process's number."""
    return ranks().rank


def size() -> int:
    """How many ranks."""
    return ranks().size


def local_rank() -> int:
    """This process's number on its node."""
    return ranks().local_rank


def local_size() -> int:
    """How many ranks on this node."""
    return ranks().local_size


def cross_rank() -> int:
    """The number of this node among those that have a rank of our local number."""
    return ranks().cross_rank


def cross_size() -> int:
    """How many nodes have a rank of our local number."""
    return ranks().cross_size


def is_homogeneous() -> bool:
    """Whether all nodes have equally many ranks."""
    return ranks().homogeneous


def as_process_set(given: ProcessSet | Iterable[int]) -> ProcessSet:
    """A process set, or one of what it can be made of."""
    return given if isinstance(given, ProcessSet) else ProcessSet(given)


def add_process_set(process_set: ProcessSet | Iterable[int]) -> ProcessSet:
    """Registers a process set; see ``Ranks.add()``."""
    made = as_process_set(process_set)
    ranks().add([made])
    return made


def remove_process_set(process_set: ProcessSet) -> bool:
    """Takes a process set back; see ``Ranks.remove()``."""
    return ranks().remove(process_set)


def enqueue(
    kind: type[Kind],
    make: Callable[[MPI.Intracomm], Kind],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> CollectiveHandle[Kind]:
    """Enqueues a collective; it runs once every rank has enqueued it.

    Args:
        kind: of collective.
        make: makes it, given the communicator. What it refuses on this rank ends the other ranks'
            calls of that name too.
        name: of the call; without one it is called after how many unnamed ones of its kind came
            before.
        process_set: the ranks that take part.

    Raises:
        TypeError: raised by ``make``; so is ValueError.
        ValueError: this process is none of the process set's, or a call of that name is under way.
    """
    stream = ranks().stream(process_set)
    with stream.refusing(kind.kind, name):
        collective = make(ranks().communicator(process_set))
    return CollectiveHandle(collective, stream.enqueue(collective, name))


def join() -> int:
    """Serves the other ranks until all have joined: a joined rank abstains in every vote.

    Collective over all ranks. Collectives other than votes, and votes called one by one, need
    every rank: meanwhile they end in an error on those that ask for them.

    Returns:
        The rank that joined last.

    Raises:
        RankLostError: a rank has left.
    """
    here = ranks()
    met = here.stream(global_process_set).enqueue(Opening({}, patient=True), JOIN)
    served = here.world.serve()
    last = served.wait(lambda: here.last_to_come(met))
    met.wait()
    return last
