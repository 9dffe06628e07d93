"""Gradients that stay one rank's own: of ranks outside a process set, and of local variables."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tf_helpers import recorded, same_everywhere

KERAS = tf.keras
KERAS_2 = not hasattr(KERAS.optimizers.SGD, "apply")
SGD = KERAS.optimizers.legacy.SGD if KERAS_2 else KERAS.optimizers.SGD
MODES = pytest.mark.parametrize("mode", [lambda f: f, tf.function], ids=["eager", "graph"])


@pytest.fixture(scope="module")
def some(hvd_tf, world):
    """All ranks but the last."""
    found = hvd_tf.add_process_set(list(range(world.size - 1)))
    yield found
    world.Barrier()
    assert hvd_tf.remove_process_set(found)


def decided(world, numbers, *, vote):
    """What the ranks of the set above make of numbers; the last rank keeps its own."""
    if world.rank == world.size - 1:
        return numbers[-1]
    inside = numbers[:-1]
    return np.sign(np.sum(np.sign(inside))) if vote else np.mean(inside)


def numbers_of(world):
    """A gradient of each rank, of which the mean and the majority are known."""
    return [-2.0 if rank == 0 else 3.0 + rank for rank in range(world.size)]


@MODES
@pytest.mark.ranks(2)
@pytest.mark.parametrize("vote", [False, True])
def test_a_tape_outside(hvd_tf, world, some, vote, mode):
    numbers = numbers_of(world)
    variable = tf.Variable([1.0, 1.0])
    options = {"compression": hvd_tf.Compression.sign, "ties": "zero"} if vote else {}

    def gradient():
        tape, target = recorded([variable], [tf.fill([2], numbers[world.rank])])
        tape = hvd_tf.DistributedGradientTape(tape, process_set=some, **options)
        return tape.gradient(target, [variable])

    (got,) = mode(gradient)()
    np.testing.assert_allclose(got, decided(world, numbers, vote=vote), rtol=1e-6)


@MODES
@pytest.mark.ranks(2)
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("vote", [False, True])
def test_an_optimizer_outside(hvd_tf, world, some, vote, passes, mode):
    numbers = numbers_of(world)
    variable = tf.Variable([0.0, 0.0])
    vote_options = {"compression": hvd_tf.Compression.sign, "ties": "zero"}
    optimizer = hvd_tf.DistributedOptimizer(
        SGD(1.0),
        process_set=some,
        backward_passes_per_step=passes,
        **(vote_options if vote else {}),
    )

    def step():
        if KERAS_2:  # Horovod reduces nowhere else
            pairs = optimizer._compute_gradients(
                lambda: tf.reduce_sum(variable * numbers[world.rank]), [variable]
            )
        else:
            pairs = [(tf.fill([2], numbers[world.rank]), variable)]
        optimizer.apply_gradients(pairs)

    run = mode(step)
    for _ in range(passes):
        run()
    # Passes add up; a verdict stays one.
    wanted = decided(world, numbers, vote=vote)
    inside = world.rank < world.size - 1
    wanted *= 1 if vote and inside else passes
    np.testing.assert_allclose(variable.numpy(), -wanted, rtol=1e-6)


@MODES
@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("vote", [False, True])
def test_local_sources_of_a_tape(hvd_tf, world, vote, scales, mode):
    numbers = numbers_of(world)
    shared, own, table = tf.Variable([1.0]), tf.Variable([1.0, 2.0]), tf.Variable(tf.ones([3, 2]))
    options = {"compression": hvd_tf.Compression.sign, "ties": "zero"} if vote else {}

    def gradients():
        number = numbers[world.rank]
        with tf.GradientTape() as tape:
            rows = tf.gather(table, [1])  # whose gradient is tf.IndexedSlices
            target = number * (tf.reduce_sum(shared) + tf.reduce_sum(own) + tf.reduce_sum(rows))
        tape = hvd_tf.DistributedGradientTape(tape, scale_local_gradients=scales, **options)
        tape.register_local_source(own)
        tape.register_local_source(table)
        local, together = tape.get_local_and_global_gradients(target, [shared, own, table])
        assert [id(source) for source, _ in local] == [id(own), id(table)]
        assert together[0][0] is shared
        return together[0][1], local[0][1], local[1][1]

    got, kept, rows = mode(gradients)()
    wanted = np.sign(np.sum(np.sign(numbers))) if vote else np.mean(numbers)
    np.testing.assert_allclose(got, [wanted], rtol=1e-6)
    mine = numbers[world.rank] / (world.size if scales else 1)
    np.testing.assert_allclose(kept, [mine, mine], rtol=1e-6)
    assert isinstance(rows, tf.IndexedSlices)
    assert rows.indices.numpy().tolist() == [1]
    np.testing.assert_allclose(rows.values, [[mine, mine]], rtol=1e-6)


@pytest.mark.parametrize("vote", [False, True])
def test_local_layers(hvd_tf, world, vote):
    first = KERAS.layers.Dense(2, kernel_initializer="ones")
    last = KERAS.layers.Dense(1, kernel_initializer="ones")
    model = KERAS.Sequential([KERAS.layers.Input((1,)), first, last])
    options = {"compression": hvd_tf.Compression.sign} if vote else {}
    x = tf.constant([[1.0 + world.rank]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x))
    variables = [getattr(v, "value", v) if not KERAS_2 else v for v in model.trainable_variables]
    tape = hvd_tf.PartialDistributedGradientTape(tape, local_layers=first, **options)
    kernel, bias, last_kernel, last_bias = tape.gradient(loss, variables)
    np.testing.assert_allclose(kernel, [[(1.0 + world.rank) / world.size] * 2])
    np.testing.assert_allclose(bias, [1 / world.size] * 2)
    np.testing.assert_allclose(last_bias, [1.0])
    # Each rank's is 1 + rank.
    mean = 1.0 if vote else (world.size + 1) / 2
    np.testing.assert_allclose(last_kernel, [[mean]] * 2)
    with pytest.raises(ValueError, match=r"ayers"):
        hvd_tf.PartialDistributedGradientTape(tf.GradientTape(), local_layers=["first"])


@MODES
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("vote", [False, True])
def test_local_layers_of_an_optimizer(hvd_tf, world, vote, passes, mode):
    numbers = numbers_of(world)
    layer = KERAS.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    layer.build((None, 1))
    (own,) = layer.trainable_weights
    shared = tf.Variable([0.0])
    vote_options = {"compression": hvd_tf.Compression.sign, "ties": "zero"}
    optimizer = hvd_tf.keras.PartialDistributedOptimizer(
        SGD(1.0),
        local_layers=[layer],
        backward_passes_per_step=passes,
        **(vote_options if vote else {}),
    )

    def step():
        number = numbers[world.rank]
        if KERAS_2:
            pairs = optimizer._compute_gradients(
                lambda: number * (tf.reduce_sum(own) + tf.reduce_sum(shared)), [own, shared]
            )
        else:
            pairs = [(tf.fill([1, 1], number), own), (tf.fill([1], number), shared)]
        optimizer.apply_gradients(pairs)

    run = mode(step)
    for _ in range(passes):
        run()
    wanted = np.sign(np.sum(np.sign(numbers))) if vote else np.mean(numbers) * passes
    np.testing.assert_allclose(shared.numpy(), [-wanted], rtol=1e-6)
    mine = numbers[world.rank] * passes / world.size
    np.testing.assert_allclose(np.asarray(own), [[-mine]], rtol=1e-6)
    assert same_everywhere(world, shared)


@pytest.mark.ranks(3)
def test_votes_of_a_process_set(hvd_tf, world):
    some = hvd_tf.add_process_set([0, world.size - 1])
    if some.included():
        sign = -1.0 if world.rank == 0 else 1.0
        verdict = hvd_tf.allreduce(
            tf.constant([sign, -1.0]), op=hvd_tf.MajorityVote, ties="zero", process_set=some
        )
        assert verdict.numpy().tolist() == [0, -1]
    assert hvd_tf.remove_process_set(some)
