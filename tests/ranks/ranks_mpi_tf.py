"""TensorFlow's operations on MPI alone: what Horovod's cannot do, does not say, or hangs in."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from ranks_tf_ops import array, gradient_of, own
from tf_helpers import refused_alike


def test_the_runtime_is_ours(hvd_tf):
    assert hvd_tf.runtime() == "mpi"
    assert hvd_tf.keras.runtime() == "mpi"
    assert (hvd_tf.nccl_built(), hvd_tf.cuda_built(), hvd_tf.gloo_built()) == (0, False, False)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "bfloat16"])
def test_more_types_are_reduced(hvd_tf, world, dtype):
    mine = tf.cast(own(world, (5,), "int32"), dtype)
    every = np.stack(world.allgather(own(world, (5,), "float64")))
    for mode in (lambda f: f, tf.function):
        got = mode(lambda t: hvd_tf.allreduce(t, op=hvd_tf.Sum))(mine)
        assert got.dtype.name == dtype
        np.testing.assert_array_equal(array(tf.cast(got, tf.float64)), every.sum(0))
        gathered = mode(hvd_tf.allgather)(mine)
        np.testing.assert_array_equal(array(tf.cast(gathered, tf.float64)), every.reshape(-1))


@pytest.mark.parametrize(
    ("dtype", "fractions"),
    [("uint8", "float32"), ("int8", "float32"), ("int32", "float64"), ("int64", "float64")],
)
def test_means_of_integer_slices_are_fractions(hvd_tf, world, dtype, fractions):
    slices = tf.IndexedSlices(
        tf.constant([[world.rank + 1]], dtype), tf.constant([0]), tf.constant([2, 1])
    )
    for mode in (lambda f: f, tf.function):
        for got in (
            mode(lambda: hvd_tf.allreduce(slices))(),
            mode(lambda: hvd_tf.grouped_allreduce([slices])[0])(),
        ):
            assert got.values.dtype.name == fractions
            total = float(tf.reduce_sum(tf.convert_to_tensor(got)))
            np.testing.assert_allclose(total, (world.size + 1) / 2, rtol=1e-6)


def test_means_of_integers_are_rounded_once(hvd_tf, world):
    mine = np.array([-7, -3, 5, 100]) + world.rank * np.array([8, 5, 1, 1])
    halves = np.trunc(np.array(world.allgather(mine)) / 2)
    expected = np.trunc(halves.sum(0) * 1.5 / world.size)  # not rounded after the division too
    factors = {"prescale_factor": 0.5, "postscale_factor": 1.5}
    tensor = tf.constant(mine)
    np.testing.assert_array_equal(array(hvd_tf.allreduce(tensor, **factors)), expected)
    shares = np.array_split(expected, world.size)
    got = hvd_tf.reducescatter(tensor, **factors)
    np.testing.assert_array_equal(array(got), shares[world.rank])


def test_booleans(hvd_tf, world):
    mine = tf.constant([world.rank == 0, True, False])
    assert array(hvd_tf.allreduce(mine, op=hvd_tf.Max)).tolist() == [True, True, False]
    alone = world.size == 1
    assert array(hvd_tf.allreduce(mine, op=hvd_tf.Min)).tolist() == [alone, True, False]


def test_whatever_becomes_a_tensor(hvd_tf, world):
    assert float(hvd_tf.allreduce(2.0)) == 2.0
    assert array(hvd_tf.allreduce(np.ones(2), op=hvd_tf.Sum)).tolist() == [world.size] * 2
    assert float(hvd_tf.broadcast(tf.Variable(float(world.rank)), 0)) == 0.0


def test_gradients_in_graphs(hvd_tf, world):
    def in_graph(function, *tensors):
        return tf.function(function)(*tensors)

    mine, weights = own(world, (3,), "float32"), own(world, (3,), "float32") ** 2
    mean = np.mean(world.allgather(weights), 0)
    got = gradient_of(in_graph, lambda x: hvd_tf.broadcast(x, 0), mine, weights)
    np.testing.assert_allclose(got, mean if world.rank == 0 else 0 * mean, rtol=1e-6)
    lengths = [rank + 1 for rank in range(world.size)]
    weights = own(world, (sum(lengths), 2), "float32") ** 2
    mine = own(world, (lengths[world.rank], 2), "float32")
    got = gradient_of(in_graph, hvd_tf.allgather, mine, weights)
    mean = np.mean(world.allgather(weights), 0)
    before = sum(lengths[: world.rank])
    np.testing.assert_allclose(got, mean[before : before + lengths[world.rank]], rtol=1e-6)


def test_one_operation_twice_in_a_graph_on_one_tensor(hvd_tf, world):
    @tf.function
    def twice(tensor):
        return hvd_tf.allreduce(tensor, op=hvd_tf.Max), hvd_tf.allreduce(tensor, op=hvd_tf.Min)

    for _ in range(3):
        most, least = twice(tf.constant(world.rank))
        assert (int(most), int(least)) == (world.size - 1, 0)


def test_a_tensor_from_outside_of_the_graph(hvd_tf, world):
    number = tf.constant([world.rank + 1.0])
    both = tf.function(
        lambda: (hvd_tf.allreduce(number), hvd_tf.allreduce(number, op=hvd_tf.MajorityVote))
    )
    for _ in range(2):
        mean, verdict = both()
        np.testing.assert_allclose(mean, [(world.size + 1) / 2])
        assert array(verdict).tolist() == [1.0]


def test_variables_in_several_calls(hvd_tf, world, monkeypatch):
    monkeypatch.setattr("hvd_sign_tf.mpi.variables.BUCKET_BYTES", 100)
    owned = [tf.Variable(tf.fill([10], float(world.rank + i))) for i in range(7)]
    hvd_tf.broadcast_variables(owned, world.size - 1)
    for i, variable in enumerate(owned):
        np.testing.assert_array_equal(variable.numpy(), world.size - 1 + i)


def test_size_of_a_set_by_its_number(hvd_tf, world):
    assert int(hvd_tf.size_op(0)) == world.size
    assert int(hvd_tf.process_set_included_op(99)) == -3
    with pytest.raises(ValueError, match=r"process_set_id: expected one of \[0\], got 99"):
        hvd_tf.size_op(99)


@pytest.mark.ranks(2)
def test_ranks_that_differ(hvd_tf, world):
    odd = world.rank % 2

    def said(call):
        return refused_alike(world, call)

    assert "shape" in said(lambda: hvd_tf.allreduce(tf.zeros([2 + odd])))
    assert "dtype" in said(lambda: hvd_tf.allreduce(tf.zeros(2, [tf.int32, tf.int64][odd])))
    assert "op" in said(lambda: hvd_tf.allreduce(tf.zeros(2), op=[hvd_tf.Sum, hvd_tf.Max][odd]))
    assert "number of tensors" in said(lambda: hvd_tf.grouped_allgather([tf.zeros(2)] * (1 + odd)))
    assert "root_rank" in said(lambda: hvd_tf.broadcast(tf.zeros(2), odd))
    names = ["left", "right"]
    variables = [tf.Variable(0.0, name=names[odd])]
    assert "names" in said(lambda: hvd_tf.broadcast_variables(variables, 0))
    graph = tf.function(lambda t: hvd_tf.allreduce(t, name="in a graph"))
    sentence = r"allreduce 'in a graph': shape differs between ranks: \(2,\) on rank"
    with pytest.raises(tf.errors.OpError, match=sentence):
        graph(tf.zeros([2 + odd]))
    np.testing.assert_array_equal(hvd_tf.allreduce(tf.ones(2)), 1.0)


@pytest.mark.ranks(2)
def test_one_ranks_mistake_ends_the_others_calls(hvd_tf, world):
    first = world.rank == 0

    def fails(call, reason):
        with pytest.raises((ValueError, TypeError), match=reason) as caught:
            call()
        if not first:
            assert "refused on rank 0" in str(caught.value)

    good = tf.ones(2)
    fails(lambda: hvd_tf.allreduce(good, op=99 if first else hvd_tf.Sum), "op: expected one of")
    fails(lambda: hvd_tf.allreduce(good, op=hvd_tf.Adasum if first else None), "Adasum needs")
    fails(lambda: hvd_tf.allreduce(good, True, op=hvd_tf.Sum if first else None), "average")
    fails(lambda: hvd_tf.allreduce(object() if first else good), "object")
    fails(lambda: hvd_tf.allgather(tf.constant(1.0) if first else good), "at least one dimension")
    fails(lambda: hvd_tf.alltoall(tf.ones(world.size), [99] if first else None), "splits: expected")
    fails(lambda: hvd_tf.reducescatter(good, op=hvd_tf.Min if first else hvd_tf.Sum), "Average or")
    fails(lambda: hvd_tf.broadcast(good, world.size if first else 0), "root_rank: expected one of")
    fails(lambda: hvd_tf.broadcast_object(lambda: 1), "pickle cannot copy this function")
    fails(lambda: hvd_tf.allgather_object((lambda: 1) if first else 1), "pickle cannot copy")
    np.testing.assert_array_equal(hvd_tf.allreduce(good), 1.0)


def test_xla_and_old_graphs_are_refused(hvd_tf):
    with pytest.raises(RuntimeError, match="XLA cannot compile"):
        tf.function(hvd_tf.allreduce, jit_compile=True)(tf.ones(2))
    with (
        tf.compat.v1.Graph().as_default(),
        pytest.raises(RuntimeError, match=r"expected eager mode or a tf\.function"),
    ):
        hvd_tf.allgather(tf.ones(2))


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("SyncBatchNormalization", "BatchNormalization"),
        ("broadcast_global_variables", "broadcast_variables"),
        ("BroadcastGlobalVariablesHook", "BroadcastGlobalVariablesCallback"),
    ],
)
def test_what_is_absent_names_what_to_do(hvd_tf, name, instead):
    with pytest.raises(RuntimeError, match=rf"hvd\.{name} needs Horovod itself.*{instead}"):
        getattr(hvd_tf, name)()


def test_elastic_is_absent(hvd_tf):
    with pytest.raises(RuntimeError, match=r"hvd\.elastic\.run needs Horovod itself"):
        hvd_tf.elastic.run(print)
    with pytest.raises(RuntimeError, match=r"hvd\.elastic\.KerasState needs Horovod itself"):
        hvd_tf.keras.elastic.KerasState(None)


@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_means_of_gradients(hvd_tf, world, compression):
    variable = tf.Variable([1.0, 2.0])
    for factor in (1.0, 4.0):
        tape = tf.GradientTape()
        with tape:
            target = tf.reduce_sum(variable * float(world.rank + 1))
        distributed = hvd_tf.DistributedGradientTape(
            tape,
            compression=getattr(hvd_tf.Compression, compression),
            gradient_predivide_factor=factor,
        )
        got = distributed.gradient(target, variable)
        np.testing.assert_allclose(array(got), (world.size + 1) / 2, rtol=1e-3)
