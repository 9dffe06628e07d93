"""Horovod's operations on TensorFlow's tensors, on whichever runtime is in use.

What is expected is numpy's, of what all ranks hold, and gradients are those that Horovod documents.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tf_helpers import refused_alike

INTEGERS = ("uint8", "int8", "int32", "int64")
FLOATS = ("float16", "float32", "float64")
MODES = ("eager", "graph")


def eagerly(function, *tensors):
    """For gradients that hang in graphs of Horovod's, which drops an allreduce on some ranks."""
    return function(*tensors)


def as_mode(mode, function):
    return tf.function(function) if mode == "graph" else function


@pytest.fixture(params=MODES)
def run(request):
    """Calls a function on tensors, eagerly or as a tf.function."""
    return lambda function, *tensors: as_mode(request.param, function)(*tensors)


def own(world, shape, dtype):
    """Small numbers that differ between ranks and of which sums and products are exact."""
    count = int(np.prod(shape))
    return (np.arange(count).reshape(shape) % 3 + world.rank + 1).astype(dtype)


def array(tensor):
    return np.asarray(tensor)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_allreduce(hvd_tf, world, run, dtype):
    shapes = [(), (5,), (3, 2)]
    mine = [(own(world, shape, "int32") % 3 + 1).astype(dtype) for shape in shapes]
    every = [np.stack(world.allgather(own)).astype("float64") for own in mine]
    ops = {hvd_tf.Sum: np.sum, hvd_tf.Min: np.min, hvd_tf.Max: np.max, hvd_tf.Product: np.prod}

    def reduced(*tensors):
        return [[hvd_tf.allreduce(tensor, op=op) for tensor in tensors] for op in ops]

    for got, expected in zip(run(reduced, *map(tf.constant, mine)), ops.values(), strict=True):
        for result, held in zip(got, every, strict=True):
            assert (result.dtype.name, result.shape) == (dtype, held.shape[1:])
            np.testing.assert_array_equal(array(result).astype("float64"), expected(held, axis=0))


@pytest.mark.parametrize("dtype", FLOATS)
def test_average_is_the_default(hvd_tf, world, run, dtype):
    mine = own(world, (4,), dtype)
    mean = np.mean(world.allgather(mine.astype("float64")), 0)

    def reduced(tensor):
        return (
            hvd_tf.allreduce(tensor),
            hvd_tf.allreduce(tensor, op=hvd_tf.Average),
            hvd_tf.allreduce(tensor, average=True),
            hvd_tf.allreduce(tensor, average=False) / world.size,
        )

    for got in run(reduced, tf.constant(mine)):
        np.testing.assert_allclose(array(got).astype("float64"), mean, rtol=2e-3)


def test_factors_and_fp16(hvd_tf, world, run):
    total = world.size * (world.size + 1) / 2

    def reduced(tensor):
        return (
            hvd_tf.allreduce(
                tensor, op=hvd_tf.Sum, prescale_factor=0.5, postscale_factor=10.0, name="factors"
            ),
            hvd_tf.allreduce(tensor, op=hvd_tf.Sum, compression=hvd_tf.Compression.fp16),
        )

    scaled, halved = run(reduced, tf.fill([3], world.rank + 1.0))
    np.testing.assert_array_equal(array(scaled), 5 * total)
    assert halved.dtype == tf.float32
    np.testing.assert_array_equal(array(halved), total)
    # 1 + 2**-12 has no fp16.
    near = run(
        lambda t: hvd_tf.allreduce(t, op=hvd_tf.Max, compression=hvd_tf.Compression.fp16),
        tf.constant([1.0 + 2.0**-12]),
    )
    assert array(near).tolist() == [1.0]


def test_indexed_slices_are_gathered(hvd_tf, world, run):
    def reduced(values, op):
        slices = tf.IndexedSlices(
            values, tf.constant([world.rank, 0]), tf.constant([world.size, 2])
        )
        return tf.convert_to_tensor(hvd_tf.allreduce(slices, op=op))

    values = tf.fill([2, 2], world.rank + 1.0)
    expected = np.zeros((world.size, 2), "float32")
    for rank in range(world.size):
        expected[rank] += rank + 1
        expected[0] += rank + 1
    got = run(lambda v: reduced(v, hvd_tf.Sum), values)
    np.testing.assert_array_equal(array(got), expected)
    got = run(lambda v: reduced(v, hvd_tf.Average), values)
    np.testing.assert_allclose(array(got), expected / world.size, rtol=1e-6)


def test_grouped_allreduce(hvd_tf, world, run):
    first, second = own(world, (3,), "float32"), own(world, (2, 2), "float32")
    got = run(
        lambda *tensors: hvd_tf.grouped_allreduce(list(tensors), op=hvd_tf.Sum),
        tf.constant(first),
        tf.constant(second),
    )
    for result, mine in zip(got, (first, second), strict=True):
        np.testing.assert_array_equal(array(result), np.sum(world.allgather(mine), 0))
    assert hvd_tf.grouped_allreduce([]) == []


@pytest.mark.parametrize("dtype", [*INTEGERS, "uint16", "int16", *FLOATS, "bool"])
def test_allgather_of_different_lengths(hvd_tf, world, run, dtype):
    mine = own(world, (world.rank + 1, 2), "int32") % 2
    mine = mine.astype(dtype)
    got = run(hvd_tf.allgather, tf.constant(mine))
    np.testing.assert_array_equal(array(got), np.concatenate(world.allgather(mine)))


def test_lengths_that_only_the_run_knows(hvd_tf, world):
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def gathered(tensor):
        return hvd_tf.allgather(tensor)

    for extra in (0, 2):
        got = gathered(tf.zeros([world.rank + extra, 3]))
        assert got.shape == (sum(r + extra for r in range(world.size)), 3)


def test_grouped_allgather(hvd_tf, world, run):
    first, second = own(world, (world.rank + 1,), "float32"), own(world, (2, 3), "float32")
    got = run(
        lambda *tensors: hvd_tf.grouped_allgather(list(tensors)),
        tf.constant(first),
        tf.constant(second),
    )
    for result, mine in zip(got, (first, second), strict=True):
        np.testing.assert_array_equal(array(result), np.concatenate(world.allgather(mine)))


@pytest.mark.parametrize("dtype", [*INTEGERS, "uint16", "int16", *FLOATS, "bool"])
def test_broadcast(hvd_tf, world, run, dtype):
    root = world.size - 1
    mine = (own(world, (2, 2), "int32") % 2).astype(dtype)
    got = run(lambda t: hvd_tf.broadcast(t, root), tf.constant(mine))
    assert got.dtype.name == dtype
    np.testing.assert_array_equal(array(got), world.bcast(mine, root))
    assert hvd_tf.broadcast(tf.constant(world.rank), root).shape == ()


def test_alltoall(hvd_tf, world, run):
    mine = 100 * world.rank + np.arange(2 * world.size)
    got = run(hvd_tf.alltoall, tf.constant(mine))
    here = 2 * world.rank
    expected = [100 * rank + here + i for rank in range(world.size) for i in range(2)]
    assert array(got).tolist() == expected
    # Rank r sends r + j rows of its number to rank j.
    splits = tf.constant([world.rank + j for j in range(world.size)], tf.int32)
    rows = tf.fill([int(tf.reduce_sum(splits)), 3], float(world.rank))
    got, received = run(lambda t, s: hvd_tf.alltoall(t, splits=s), rows, splits)
    counts = [rank + world.rank for rank in range(world.size)]
    assert array(received).tolist() == counts
    np.testing.assert_array_equal(array(got)[:, 0], np.repeat(np.arange(world.size), counts))


def test_reducescatter(hvd_tf, world, run):
    mine = own(world, (2 * world.size + 1, 2), "float32")
    total = np.sum(world.allgather(mine), 0)
    share = np.array_split(total, world.size)[world.rank]
    got = run(lambda t: hvd_tf.reducescatter(t, op=hvd_tf.Sum), tf.constant(mine))
    np.testing.assert_array_equal(array(got), share)
    got = run(hvd_tf.reducescatter, tf.constant(mine))
    np.testing.assert_allclose(array(got), share / world.size, rtol=1e-6)
    both = run(lambda t: hvd_tf.grouped_reducescatter([t, 2 * t], op=hvd_tf.Sum), tf.constant(mine))
    np.testing.assert_array_equal(array(both[0]), share)
    np.testing.assert_array_equal(array(both[1]), 2 * share)


def gradient_of(run, operation, source, weights):
    """The gradient of the sum of ``operation(source) * weights`` by the source."""

    def differentiate(x, w):
        with tf.GradientTape() as tape:
            tape.watch(x)
            target = tf.reduce_sum(operation(x) * w)
        return tape.gradient(target, x)

    return array(run(differentiate, tf.constant(source), tf.constant(weights)))


def test_gradient_of_allreduce(hvd_tf, world, run):
    mine, weights = own(world, (3,), "float32"), own(world, (3,), "float32") ** 2
    every = world.allgather(weights)
    got = gradient_of(run, lambda x: hvd_tf.allreduce(x, op=hvd_tf.Sum), mine, weights)
    np.testing.assert_allclose(got, np.sum(every, 0), rtol=1e-6)
    got = gradient_of(run, hvd_tf.allreduce, mine, weights)
    np.testing.assert_allclose(got, np.mean(every, 0), rtol=1e-6)


def test_gradient_of_grouped_allreduce(hvd_tf, world, run):
    mine, weights = own(world, (3,), "float32"), own(world, (3,), "float32") ** 2

    def operation(x):
        first, second = hvd_tf.grouped_allreduce([x, 3.0 * x], op=hvd_tf.Sum)
        return first + second

    got = gradient_of(run, operation, mine, weights)
    np.testing.assert_allclose(got, 4 * np.sum(world.allgather(weights), 0), rtol=1e-6)


def test_gradient_of_broadcast(hvd_tf, world):
    mine, weights = own(world, (3,), "float32"), own(world, (3,), "float32") ** 2
    got = gradient_of(eagerly, lambda x: hvd_tf.broadcast(x, 0), mine, weights)
    mean = np.mean(world.allgather(weights), 0)
    np.testing.assert_allclose(got, mean if world.rank == 0 else 0 * mean, rtol=1e-6)


def test_gradient_of_alltoall(hvd_tf, world, run):
    splits = [world.rank + j for j in range(world.size)]
    mine = own(world, (sum(splits),), "float32")

    def operation(x):
        received, _ = hvd_tf.alltoall(x, splits=splits)
        return received

    # Whoever receives a row weighs it by its own rank.
    weights = np.float32(world.rank + 1)
    got = gradient_of(run, operation, mine, weights)
    np.testing.assert_array_equal(got, np.repeat(np.arange(world.size) + 1, splits))


def test_gradient_of_reducescatter(hvd_tf, world, run):
    mine = own(world, (2 * world.size,), "float32")
    weights = np.full(2, world.rank + 1, "float32")
    expected = np.repeat(np.arange(world.size) + 1, 2)
    got = gradient_of(run, hvd_tf.reducescatter, mine, weights)
    np.testing.assert_array_equal(got, expected)
    got = gradient_of(run, lambda x: hvd_tf.reducescatter(x, op=hvd_tf.Sum), mine, weights)
    np.testing.assert_array_equal(got, world.size * expected)


def test_gradient_of_allgather(hvd_tf, world):
    lengths = [rank + 1 for rank in range(world.size)]
    weights = own(world, (sum(lengths),), "float32") ** 2
    mine = own(world, (lengths[world.rank],), "float32")
    got = gradient_of(eagerly, hvd_tf.allgather, mine, weights)
    mean = np.mean(world.allgather(weights), 0)
    before = sum(lengths[: world.rank])
    np.testing.assert_allclose(got, mean[before : before + lengths[world.rank]], rtol=1e-6)


def test_variables_are_broadcast(hvd_tf, world):
    shapes = [(), (3,), (0, 2), (4, 5), *[(2,)] * 40]
    owned = [
        tf.Variable(own(world, shape, dtype), name=f"v{i}")
        for i, (shape, dtype) in enumerate(
            zip(shapes, [*FLOATS, "int64", *["float32"] * 40], strict=True)
        )
    ]
    root = world.size - 1
    expected = world.bcast([v.numpy() for v in owned], root)
    hvd_tf.broadcast_variables(owned, root_rank=root)
    for variable, wanted in zip(owned, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), wanted)
    one = tf.Variable(float(world.rank))
    (value,) = hvd_tf.broadcast_([one], 0)
    assert float(value) == float(one) == 0.0


def test_variables_are_broadcast_within_a_function(hvd_tf, world):
    variable = tf.Variable([float(world.rank)])

    @tf.function
    def start():
        hvd_tf.broadcast_variables([variable], world.size - 1)

    start()
    assert variable.numpy().tolist() == [world.size - 1]


def test_objects(hvd_tf, world):
    mine = {"rank": world.rank, "values": list(range(1000 * (world.rank + 1)))}
    root = world.size - 1
    assert hvd_tf.broadcast_object(mine, root)["rank"] == root
    assert hvd_tf.broadcast_object(world.rank, 0, name="number") == 0
    gathered = hvd_tf.allgather_object(mine)
    assert [len(each["values"]) for each in gathered] == [
        1000 * (rank + 1) for rank in range(world.size)
    ]


def test_ranks_as_operations(hvd_tf, world, run):
    got = run(
        lambda: [
            hvd_tf.rank_op(),
            hvd_tf.size_op(),
            hvd_tf.local_rank_op(),
            hvd_tf.local_size_op(),
            hvd_tf.process_set_included_op(0),
        ]
    )
    assert [int(number) for number in got] == [world.rank, world.size, world.rank, world.size, 1]


def test_who_takes_part(hvd_tf, world):
    assert hvd_tf.is_initialized()
    assert (hvd_tf.rank(), hvd_tf.size()) == (world.rank, world.size)
    assert (hvd_tf.local_rank(), hvd_tf.local_size()) == (world.rank, world.size)  # one machine
    assert (hvd_tf.cross_rank(), hvd_tf.cross_size()) == (0, 1)
    assert hvd_tf.is_homogeneous()
    assert hvd_tf.mpi_enabled()
    assert hvd_tf.mpi_built()
    assert not hvd_tf.gloo_enabled()
    assert not hvd_tf.rocm_built()


def test_barrier_waits_for_the_last(hvd_tf, world):
    requests = []
    if world.rank == world.size - 1:
        requests = [world.isend(None, rank, tag=77) for rank in range(world.size - 1)]
    hvd_tf.barrier()
    if world.rank < world.size - 1:
        assert world.iprobe(tag=77)  # sent before the barrier
        world.recv(tag=77)
    for request in requests:
        request.wait()
    with pytest.raises(RuntimeError, match="barrier"):
        tf.function(hvd_tf.barrier)()


@pytest.mark.ranks(2)
def test_process_sets(hvd_tf, world):
    evens = hvd_tf.ProcessSet(range(0, world.size, 2))
    hvd_tf.add_process_set(evens)
    if evens.included():
        assert (evens.rank(), evens.size()) == (world.rank // 2, (world.size + 1) // 2)
        mine = tf.constant([world.rank + 1.0])
        members = list(range(0, world.size, 2))
        got = hvd_tf.allreduce(mine, op=hvd_tf.Sum, process_set=evens)
        assert float(got[0]) == sum(rank + 1 for rank in members)
        got = hvd_tf.allgather(mine, process_set=evens)
        assert array(got).tolist() == [rank + 1 for rank in members]
        got = hvd_tf.broadcast(mine, members[-1], process_set=evens)
        assert float(got[0]) == members[-1] + 1
        assert hvd_tf.allgather_object(world.rank, process_set=evens) == members
        hvd_tf.barrier(process_set=evens)
    world.Barrier()
    assert hvd_tf.remove_process_set(evens)


@pytest.mark.ranks(2)
def test_ranks_that_differ_are_refused(hvd_tf, world):
    refused_alike(world, lambda: hvd_tf.allreduce(tf.zeros([world.rank + 1]), name="shapes"))
    dtype = tf.float32 if world.rank else tf.float64
    refused_alike(world, lambda: hvd_tf.allreduce(tf.zeros([2], dtype), name="dtypes"))
    refused_alike(world, lambda: hvd_tf.broadcast(tf.zeros([2]), world.rank % 2, name="roots"))
    np.testing.assert_array_equal(hvd_tf.allreduce(tf.ones([2]), name="shapes"), 1.0)


def test_joins(hvd_tf, world):
    assert hvd_tf.join() in range(world.size)
