"""Who takes part: ``init()``, ranks by job and by node, process sets and their streams."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

import numpy as np

from hvd_sign import runtime
from hvd_sign.adhoc import AdHocStream
from hvd_sign.calls import ADDED, PROCESS_SETS, REMOVED, Opening
from hvd_sign.engine import Handle
from hvd_sign.errors import NotInitializedError, VoteError
from hvd_sign.runtime import World
from hvd_sign.stall import StallCheck
from hvd_sign.standalone.operations import Collective
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set

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


class Asked(NamedTuple, Generic[Kind]):
    """A collective under way.

    Attributes:
        call: what was asked for.
        handle: of its end.
    """

    call: Kind
    handle: Handle

    def result(self) -> Any:
        """Waits for the end; what the collective gives this rank."""
        self.handle.wait()
        return self.call.result()


class Ranks:
    """The job's ranks, from ``init()`` to ``shutdown()``. Making it is collective over them.

    Args:
        communicator: of all ranks; duplicated.

    Attributes:
        world: the votes among them.
    """

    def __init__(self, communicator: MPI.Intracomm) -> None:
        mpi = runtime.load_mpi()
        self._communicator = communicator.Dup()
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        local = self._communicator.Split_type(mpi.COMM_TYPE_SHARED, self.rank)
        cross = self._communicator.Split(local.Get_rank(), self.rank)
        self.local_rank: int = local.Get_rank()
        self.local_size: int = local.Get_size()
        self.cross_rank: int = cross.Get_rank()
        self.cross_size: int = cross.Get_size()
        sizes = self._communicator.allgather(self.local_size)
        self.homogeneous = len(set(sizes)) == 1
        local.Free()
        cross.Free()
        places = self._communicator.allgather(mpi.COMM_WORLD.Get_rank())
        self.world = World(self.rank, places)
        self._sets: dict[int, ProcessSet] = {}
        self._communicators: dict[int, MPI.Intracomm] = {}
        self._numbers = 0
        global_process_set.ranks = list(range(self.size))
        self._register(global_process_set)

    def add(self, process_set: ProcessSet) -> ProcessSet:
        """Registers a process set; collective over all ranks.

        Raises:
            ValueError: it is registered, has a rank that there is not, or ranks differ in it; then
                on all ranks.
            RankLostError: a rank has left.
        """
        self.stream(global_process_set).open(
            PROCESS_SETS, change=ADDED, ranks=process_set.ranks, number=process_set.process_set_id
        )
        return self._register(process_set)

    def _register(self, process_set: ProcessSet) -> ProcessSet:
        assert process_set.ranks is not None
        if process_set.process_set_id is not None:
            raise ValueError(f"process_set: {process_set} is registered already")
        if max(process_set.ranks) >= self.size:
            raise ValueError(
                f"process_set: expected ranks below {self.size}, got {process_set.ranks}"
            )
        known = [other for other in self._sets.values() if other.ranks == process_set.ranks]
        if known:
            raise ValueError(f"process_set: its ranks are those of {known[0]}")
        included = self.rank in process_set.ranks
        part = cast("MPI.Intracomm", self._communicator.Split(int(not included), self.rank))
        number, self._numbers = self._numbers, self._numbers + 1
        process_set.register(number, process_set.ranks.index(self.rank) if included else None)
        self._sets[number] = process_set
        if included:
            self._communicators[number] = part
            self.stream(process_set)
        else:
            part.Free()
        return process_set

    def remove(self, process_set: ProcessSet) -> bool:
        """Takes a process set back; collective over all ranks. False: it is not registered.

        Raises:
            ValueError: it is the one of all ranks, or ranks differ in it; then on all ranks.
            RankLostError: a rank has left.
        """
        self.stream(global_process_set).open(
            PROCESS_SETS, change=REMOVED, ranks=process_set.ranks, number=process_set.process_set_id
        )
        number = process_set.process_set_id
        if number == 0:
            raise ValueError("process_set: that of all ranks cannot be removed")
        if number is None or self._sets.get(number) is not process_set:
            return False
        del self._sets[number]
        process_set.register(None, None)
        communicator = self._communicators.pop(number, None)
        if communicator is not None:
            assert process_set.ranks is not None
            self.world.forget(process_set.ranks)
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
        process_set.rank()
        assert process_set.process_set_id is not None
        return self._communicators[process_set.process_set_id]

    def stream(self, process_set: ProcessSet) -> AdHocStream:
        """Of the calls of a process set. Raises ValueError: this process is not in it."""
        process_set.rank()
        assert process_set.ranks is not None
        return self.world.adhoc(process_set.ranks)

    def members(self, process_set: ProcessSet) -> list[int]:
        """The ranks of a process set. Raises ValueError: it is not registered."""
        process_set.size()
        assert process_set.ranks is not None
        return process_set.ranks

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
            process_set.register(None, None)
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


def check_launch(size: int) -> None:
    """Raises RuntimeError if a launcher started several processes that MPI takes for one each."""
    for variable in ("HOROVOD_SIZE", "SLURM_STEP_NUM_TASKS"):
        started = os.environ.get(variable, "1")
        if size == 1 and started.isdigit() and int(started) > 1:
            raise RuntimeError(
                f"{variable}={started}, but MPI sees this process alone; start the ranks by "
                "mpirun, srun --mpi=pmix or horovodrun --mpi"
            )


_ranks: Ranks | None = None
_parted: StallCheck | None = None


def init(
    comm: MPI.Intracomm | Sequence[int] | None = None,
    process_sets: Sequence[ProcessSet | Sequence[int]] | str | None = None,
) -> None:
    """Starts MPI, where nobody has, and finds the ranks. Collective over them; once is enough.

    Args:
        comm: an mpi4py communicator of the ranks that take part; None: MPI_COMM_WORLD. Or a list
            of ranks of MPI_COMM_WORLD.
        process_sets: registered at once; ``"dynamic"``, as for Horovod: none yet.

    Raises:
        ValueError: ``process_sets`` is something else.
        RuntimeError: MPI cannot be used; the message says why and what helps.
        RankLostError: after ``shutdown()``, another rank's program has ended since.
    """
    global _ranks, _parted
    if _ranks is not None:
        if _ranks.world.alive:
            return
        _ranks.close()
    if isinstance(process_sets, str):
        if process_sets != "dynamic":
            raise ValueError(
                f"process_sets: expected some process sets or 'dynamic', got {process_sets!r}"
            )
        process_sets = None
    mpi = runtime.load_mpi()
    check_launch(mpi.COMM_WORLD.Get_size())
    if _parted is not None and comm is None:
        _parted.come_back()
    _parted = None
    if comm is None or isinstance(comm, mpi.Intracomm):
        _ranks = Ranks(mpi.COMM_WORLD if comm is None else comm)
    else:
        members = mpi.COMM_WORLD.Get_group().Incl(list(cast("Sequence[int]", comm)))
        made = mpi.COMM_WORLD.Create_group(members)
        _ranks = Ranks(made)
        made.Free()
    for wanted in process_sets or ():
        add_process_set(wanted)


def shutdown() -> None:
    """Waits for what is under way and ends it all. Collective over all ranks."""
    global _ranks, _parted
    ended, _ranks = _ranks, None
    if ended is not None:
        if ended.world.alive:
            _parted = ended.world.part()
        runtime.shutdown()
        ended.close()


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


def add_process_set(process_set: ProcessSet | Sequence[int]) -> ProcessSet:
    """Registers a process set; see ``Ranks.add()``."""
    if not isinstance(process_set, ProcessSet):
        process_set = ProcessSet(process_set)
    return ranks().add(process_set)


def remove_process_set(process_set: ProcessSet) -> bool:
    """Takes a process set back; see ``Ranks.remove()``."""
    return ranks().remove(process_set)


def ask(
    kind: type[Kind],
    make: Callable[[MPI.Intracomm], Kind],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Asked[Kind]:
    """Asks for a collective; it runs once every rank has asked for it.

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
        call = make(ranks().communicator(process_set))
    return Asked(call, stream.ask(call, name))


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
    met = here.stream(global_process_set).ask(Opening({}, patient=True), JOIN)
    served = here.world.serve()
    last = served.wait(lambda: here.last_to_come(met))
    met.wait()
    return last
