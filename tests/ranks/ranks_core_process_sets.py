"""Process sets of our own MPI runtime: of ranks and of communicators, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from mpi4py import MPI

from hvd_sign.standalone import ranks as hvd
from hvd_sign.standalone.objects import broadcast_object
from hvd_sign.standalone.operations import AllReduce, ReduceOp
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set


@pytest.fixture(scope="module", autouse=True)
def initialized(world: MPI.Intracomm) -> Iterator[None]:
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()
    assert not hvd.is_initialized()


def done(call, name=None, process_set=global_process_set):
    handle = hvd.enqueue(type(call), lambda communicator: call, name, process_set)
    handle.handle.wait(60)
    return handle.result()


@pytest.mark.ranks(3)
def test_process_sets(world):
    odd = hvd.add_process_set([1])
    most = hvd.add_process_set(ProcessSet([2, 0]))
    assert (most.process_set_id, most.ranks, most.size()) == (2, [0, 2], 2)
    assert most.included() == (world.rank in (0, 2))
    if most.included():
        communicator = hvd.ranks().communicator(most)
        (got,) = done(AllReduce(communicator, [np.array([world.rank])], ReduceOp.Sum), None, most)
        assert got[0] == 2
        assert broadcast_object(world.rank, 2, process_set=most) == 2
        with pytest.raises(ValueError, match=r"root_rank: expected one of \[0, 2\], got 1"):
            broadcast_object(0, 1, process_set=most)
    else:
        with pytest.raises(ValueError, match="this process is none of its ranks"):
            most.rank()
    assert hvd.remove_process_set(most)
    assert not hvd.remove_process_set(most)
    again = hvd.add_process_set([0, 2])
    assert again.process_set_id == 3
    with pytest.raises(ValueError, match="its ranks are those of ProcessSet"):
        hvd.add_process_set([1])
    assert not hvd.remove_process_set(global_process_set)
    with pytest.raises(ValueError, match=r"ranks differ in it: \[0\] on rank 0; \[1\] on rank 1"):
        hvd.add_process_set([min(world.rank, 1)])
    for process_set in (odd, again):
        assert hvd.remove_process_set(process_set)


def test_process_sets_need_ranks_once():
    for wrong in ([], [0, 0], [-1]):
        with pytest.raises(ValueError, match="ranks: expected some ranks, each once"):
            ProcessSet(wrong)
    for wrong in (3, None, MPI.COMM_NULL, "01", [0.0]):
        with pytest.raises(ValueError, match="ranks: expected integers or an mpi4py communicator"):
            ProcessSet(wrong)
    assert ProcessSet(rank for rank in (1, 0)).ranks == [0, 1]


@pytest.mark.ranks(2)
def test_process_sets_of_communicators(world):
    """Each rank gives that of its own; Horovod's, too, are then several."""
    color = world.rank % 2
    parts = [[rank for rank in range(world.size) if rank % 2 == c] for c in (0, 1)]
    part = world.Split(color, -world.rank)
    mine = ProcessSet(part)
    assert (mine.ranks, mine.size(), mine.included()) == (None, None, None)
    hvd.add_process_set(mine)
    assert mine.mpi_comm == part
    part.Free()
    numbers = sorted(set(world.allgather(mine.process_set_id)))
    other = hvd.ranks().process_set(numbers[1 - color])
    assert (mine.ranks, mine.rank()) == (parts[color], parts[color].index(world.rank))
    assert (other.ranks, other.included()) == (parts[1 - color], False)
    communicator = hvd.ranks().communicator(mine)
    (got,) = done(AllReduce(communicator, [np.array([world.rank])], ReduceOp.Sum), None, mine)
    assert got[0] == sum(parts[color])
    for process_set in (mine, other) if color == 0 else (other, mine):
        assert hvd.remove_process_set(process_set)
    assert (mine.size(), mine.rank(), mine.included()) == (None, None, True)


@pytest.mark.ranks(3)
def test_process_sets_that_ranks_do_not_share(world):
    first = world.rank == 0
    alone = world.Split(world.rank, 0)
    pair = world.Split(world.rank > 1, 0)
    for given, words in [
        ([ProcessSet([0])] if first else [], r"differ in it: \[0\] on rank 0; none on rank 1"),
        ([ProcessSet([0]), ProcessSet([0])], r"\[0\] is given twice"),
        ([ProcessSet(pair if first else alone)], r"\[0, 1\] is not given by its ranks \[1\]"),
        ([ProcessSet([0, 99])], r"expected ranks below \d, got \[0, 99\]"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            hvd.ranks().add(given)
        assert len(set(world.allgather(str(caught.value)))) == 1
        assert isinstance(caught.value, RuntimeError) == ("differ" in words or "not given" in words)
    alone.Free()
    pair.Free()


def test_communicators_that_init_refuses(world):
    hvd.shutdown()
    with pytest.raises(ValueError, match="hvd_sign has not been initialized"):
        global_process_set.size()
    for wrong, words in [
        (3, "comm: expected an mpi4py communicator or ranks, got 3"),
        (MPI.COMM_NULL, "comm: expected an mpi4py communicator or ranks"),
        ([0, 99], r"comm: expected ranks below \d, each once, got \[0, 99\]"),
        ([(world.rank + 1) % world.size], "of MPI_COMM_WORLD is none of"),
    ]:
        if world.size > 1 or words[-1] != "f":
            with pytest.raises(ValueError, match=words):
                hvd.init(wrong)
    with pytest.raises(ValueError, match="process_sets: expected some process sets or 'dynamic'"):
        hvd.init(process_sets="statics")
    assert not hvd.is_initialized()
    hvd.init([], process_sets="Dynamic")
    assert hvd.size() == world.size
