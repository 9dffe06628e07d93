"""Horovod's collectives on our own MPI runtime, against numpy on what all ranks hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from mpi4py import MPI

import hvd_sign
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.runtime.named import Tensor
from hvd_sign.standalone import ranks as hvd
from hvd_sign.standalone.objects import allgather_object, broadcast_object
from hvd_sign.standalone.operations import (
    AllGather,
    AllReduce,
    AllToAll,
    Barrier,
    Broadcast,
    ReduceOp,
    ReduceScatter,
)
from hvd_sign.standalone.process_sets import global_process_set
from hvd_sign.votes import MajorityVote

INTEGERS = ("uint8", "int8", "uint16", "int16", "int32", "int64")
FLOATS = ("float16", "float32", "float64")


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


def everyone() -> MPI.Intracomm:
    return hvd.ranks().communicator(global_process_set)


def test_ranks_are_mpis(world):
    assert (hvd.rank(), hvd.size()) == (world.rank, world.size)
    assert (hvd.local_rank(), hvd.local_size()) == (world.rank, world.size)  # one machine
    assert (hvd.cross_rank(), hvd.cross_size()) == (0, 1)
    assert hvd.is_homogeneous()


def test_nodes_are_those_of_hierarchical_votes(world, monkeypatch):
    """The first node has every rank but the last, as HVD_SIGN_NODE says."""
    lone = world.size > 1 and world.rank == world.size - 1
    monkeypatch.setenv("HVD_SIGN_NODE", "lone" if lone else "crowd")
    hvd.shutdown()
    hvd.init()
    crowd = world.size - 1 if world.size > 1 else 1
    assert (hvd.local_rank(), hvd.local_size()) == ((0, 1) if lone else (world.rank, crowd))
    first = hvd.local_rank() == 0
    across = 2 if world.size > 1 and first else 1
    assert (hvd.cross_rank(), hvd.cross_size()) == (int(lone), across)
    assert hvd.is_homogeneous() == (world.size <= 2)
    if world.size > 1:
        nodes = hvd.ranks().stream(global_process_set).transport.nodes
        assert (nodes.node, nodes.local) == (int(lone), hvd.local_rank())
    monkeypatch.undo()
    hvd.shutdown()
    hvd.init()


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 2)], ids=str)
def test_allreduce(world, dtype, shape):
    mine = (np.arange(math.prod(shape)).reshape(shape) % 3 + world.rank + 1).astype(dtype)
    every = np.stack(world.allgather(mine)).astype("float64")
    for op, expected in {
        ReduceOp.Sum: every.sum(0),
        ReduceOp.Min: every.min(0),
        ReduceOp.Max: every.max(0),
        ReduceOp.Average: every.mean(0),
    }.items():
        (got,) = done(AllReduce(everyone(), [mine], op))
        assert (got.dtype, got.shape) == (mine.dtype, mine.shape)
        if mine.dtype.kind in "iu":
            expected = np.trunc(expected + 1e-9)
        np.testing.assert_allclose(got.astype("float64"), expected, rtol=1e-3, err_msg=op.name)


def test_product_factors_and_groups(world):
    first, second = np.full(3, 2.0), np.full((2, 2), world.rank + 1.0, "float32")
    product = done(AllReduce(everyone(), [first, second], ReduceOp.Product))
    np.testing.assert_array_equal(product[0], 2.0**world.size)
    np.testing.assert_array_equal(product[1], float(math.factorial(world.size)))
    (got,) = done(AllReduce(everyone(), [first], ReduceOp.Sum, prescale=0.5, postscale=10.0))
    np.testing.assert_array_equal(got, 10.0 * world.size)
    np.testing.assert_array_equal(first, 2.0)


def test_booleans(world):
    mine = np.array([world.rank == 0, True, False])
    (anyone,) = done(AllReduce(everyone(), [mine], ReduceOp.Sum))
    (all_of_us,) = done(AllReduce(everyone(), [mine], ReduceOp.Min))
    assert anyone.tolist() == [True, True, False]
    assert all_of_us.tolist() == [world.size == 1, True, False]


def test_halves_are_summed_in_fp32(world):
    mine = np.array([2048.0 if world.rank == 0 else 1.0 / world.size], "float16")
    (got,) = done(AllReduce(everyone(), [mine], ReduceOp.Sum))
    exact = 2048.0 + (world.size - 1) / world.size
    assert abs(float(got[0]) - exact) <= 2.0  # one unit in the last place of the result


def test_allgather_of_different_lengths(world):
    mine = np.full((world.rank, 2), world.rank, "int64")
    got = done(AllGather(everyone(), mine))
    np.testing.assert_array_equal(got, np.concatenate(world.allgather(mine)))


def test_broadcast_from_the_last_rank(world):
    root = world.size - 1
    mine = np.array([[world.rank, 7]], "uint16")
    got = done(Broadcast(everyone(), mine, root))
    np.testing.assert_array_equal(got, [[root, 7]])
    assert mine[0, 0] == world.rank
    scalar = done(Broadcast(everyone(), np.float32(world.rank), root))
    assert scalar.shape == ()
    assert scalar == root


def test_alltoall_by_equal_parts_and_by_splits(world):
    mine = 100 * world.rank + np.arange(2 * world.size)
    got, rows = done(AllToAll(everyone(), mine))
    here = 2 * world.rank
    np.testing.assert_array_equal(
        got, np.concatenate([[100 * r + here, 100 * r + here + 1] for r in range(world.size)])
    )
    assert rows.tolist() == [2] * world.size
    # Rank r sends r + j rows of its number to rank j.
    splits = [world.rank + j for j in range(world.size)]
    got, rows = done(AllToAll(everyone(), np.full((sum(splits), 3), world.rank), splits))
    expected = [r + world.rank for r in range(world.size)]
    assert rows.tolist() == expected
    np.testing.assert_array_equal(got[:, 0], np.repeat(np.arange(world.size), expected))


def test_reducescatter_shares(world):
    mine = np.outer(np.arange(2 * world.size + 1) + world.rank, [1.0, 10.0])
    total = np.sum(world.allgather(mine), 0)
    share = np.array_split(total, world.size)[world.rank]
    np.testing.assert_allclose(done(ReduceScatter(everyone(), mine, ReduceOp.Sum)), share)
    average = done(ReduceScatter(everyone(), mine, ReduceOp.Average))
    np.testing.assert_allclose(average, share / world.size)


def test_any_order_under_names(world):
    """Every rank asks for ten operations in another order; none waits for the one before."""
    calls = {f"call {i}": AllReduce(everyone(), [np.array([i])], ReduceOp.Sum) for i in range(10)}
    names = sorted(calls, key=lambda name: hash((name, world.rank)))
    handles = [hvd.enqueue(AllReduce, lambda c, n=name: calls[n], name).handle for name in names]
    for handle in handles:
        handle.wait(60)
    for i in range(10):
        assert calls[f"call {i}"].result()[0][0] == i * world.size


def test_beside_votes_on_the_same_stream(rng, world):
    signal = rng.standard_normal(300_000).astype("float32")
    verdict = np.empty_like(signal)
    stream = hvd.ranks().stream(global_process_set)
    tensor = Tensor("gradient", signal.shape, "float32", Operand(HOST, signal, verdict))
    vote = stream.vote([tensor], hvd_sign.MajorityVote(), VoteOptions(ties="zero"), name="vote")
    (total,) = done(AllReduce(everyone(), [signal], ReduceOp.Sum), "sum")
    vote.wait(60)
    np.testing.assert_allclose(total, np.sum(world.allgather(signal), 0), atol=1e-4)
    expected = np.sign(np.sign(world.allgather(signal)).sum(0))
    np.testing.assert_array_equal(verdict, expected)


def test_objects(world):
    said = broadcast_object({"rank": world.rank, "long": "x" * world.rank}, world.size - 1)
    assert said == {"rank": world.size - 1, "long": "x" * (world.size - 1)}
    assert allgather_object(("rank", world.rank)) == [("rank", r) for r in range(world.size)]


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda r: AllReduce(everyone(), [np.zeros(1 + r % 2)], ReduceOp.Sum),
            "shape differs between ranks: (1,) on rank",
        ),
        (
            lambda r: AllReduce(everyone(), [np.zeros(1)], ReduceOp.Sum if r else ReduceOp.Max),
            "op differs between ranks: Max on rank 0; Sum on rank",
        ),
        (
            lambda r: Broadcast(everyone(), np.zeros(1), int(r == 0)),
            "root_rank differs between ranks: 1 on rank 0; 0 on rank",
        ),
        (
            lambda r: AllGather(everyone(), np.zeros((2, 1 + int(r == 0)))),
            "shape but for the first differs between ranks: (2,) on rank 0; (1,) on rank",
        ),
        (
            lambda r: Barrier(everyone()) if r else AllGather(everyone(), np.zeros(1)),
            "operation differs between ranks: allgather on rank 0; barrier on rank",
        ),
    ],
    ids=["shape", "op", "root", "rest of the shape", "kind"],
)
def test_ranks_that_differ_get_the_same_error(world, make, sentence):
    with pytest.raises(ValueError, match="'differing'") as caught:
        done(make(world.rank), "differing")
    assert sentence in str(caught.value)
    assert len(set(world.allgather(str(caught.value)))) == 1
    done(Barrier(everyone()), "differing")  # and all goes on


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda c: AllReduce(c, [np.ones(1)], 2), ValueError, "op: Adasum needs Horovod itself"),
        (lambda c: AllReduce(c, [np.ones(1)], 9), ValueError, "op: expected one of Average, Sum"),
        (
            lambda c: AllReduce(c, [np.array("x")], 1),
            TypeError,
            "tensor: expected numbers, got str",
        ),
        (lambda c: AllGather(c, np.array(1)), ValueError, "to gather, got a scalar"),
        (lambda c: AllToAll(c, np.array(1)), ValueError, "to split, got a scalar"),
        (
            lambda c: AllToAll(c, np.ones(3), [1] * 9),
            ValueError,
            "numbers of rows that add up to 3",
        ),
        (lambda c: ReduceScatter(c, np.ones(9), 4), ValueError, "op: expected Average or Sum, got"),
        (lambda c: Broadcast(c, np.ones(1), 99), ValueError, "root_rank: expected 0 to"),
    ],
)
def test_bad_arguments(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(everyone())


def test_what_one_rank_refuses_ends_everyones_call(world):
    def make(communicator):
        return AllGather(communicator, np.zeros(() if world.rank == 0 else (1,)))

    with pytest.raises(ValueError, match="got a scalar"):
        hvd.enqueue(AllGather, make, "refused").handle.wait(60)
    done(Barrier(everyone()), "refused")  # and all goes on


def test_a_root_outside_is_refused_everywhere(world):
    root = world.size if world.rank == 0 else 0
    with pytest.raises(ValueError, match="root_rank: expected one of"):
        broadcast_object("something", root)


def test_joined_ranks_wait_for_the_last(world):
    signal = np.array([1.0, -1.0], np.float32)
    specs = [TensorSpec("weight", signal.shape, "float32", 0)]
    session = hvd.ranks().world.session(
        range(world.size), None, specs, MajorityVote(), VoteOptions(ties="zero")
    )
    last = world.size - 1
    for step in range(1 + 2 * (world.rank == last)):
        out = np.empty_like(signal)
        session.ready(0, Operand(HOST, signal if step == 0 else -signal, out))
        session.finish(lambda ordinal: pytest.fail("nothing is missing"))
        np.testing.assert_array_equal(out, signal if step == 0 else -signal)
    assert hvd.join() == last
    assert session.state()["step"] == 4  # the last one is that in which all have joined
    done(Barrier(everyone()))


def test_a_session_goes_on_from_its_state(world):
    specs = [TensorSpec("weight", (2,), "float32", 0)]

    def opened():
        return hvd.ranks().world.session(
            range(world.size), None, specs, MajorityVote(), VoteOptions()
        )

    def step(session):
        out = np.empty(2, np.float32)
        session.ready(0, Operand(HOST, np.array([0.0, 1.0], np.float32), out))
        session.finish(lambda ordinal: pytest.fail("nothing is missing"))
        return out.tolist()

    first, second = opened(), opened()
    alone = [step(first) for _ in range(20)]
    second.load_state({**second.state(), "step": np.array(10)})
    assert [step(second) for _ in range(10)] == alone[10:]
    assert len({first for first, _ in alone}) == 2  # coins decide, step by step


def test_integers_are_averaged_exactly(world):
    large = 2**58 + 1
    mine = np.array([large, -large, 7 * world.rank - 3, 1], np.int64)
    (got,) = done(AllReduce(everyone(), [mine], ReduceOp.Average))
    total = sum(7 * rank - 3 for rank in range(world.size))
    assert got.tolist() == [large, -large, int(total / world.size), 1]


def test_references_are_refused(world):
    for make in (AllGather, lambda c, a: Broadcast(c, a, 0), AllToAll):
        with pytest.raises(TypeError, match="expected numbers or booleans, got object"):
            make(everyone(), np.array(["a"] * world.size, object))


def test_a_runtime_that_another_binding_ended_begins_anew(world):
    from hvd_sign.runtime import lifecycle

    done(Barrier(everyone()))
    lifecycle.shutdown()
    hvd.init()
    done(Barrier(everyone()))
