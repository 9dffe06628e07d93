"""Algorithms that keep something, through TensorFlow's optimizers and tapes.

What momentum has to be is told by numpy, in fp32; scales are powers of two, so that it is exact.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from additions.esteem import Esteem
from additions.momentum import FusedMomentum, Momentum
from reference import verdict
from tf_helpers import refused_alike, values

KERAS = tf.keras
KERAS_3 = hasattr(KERAS.optimizers.SGD, "apply")
BETA = 0.75
SIZE = 300
KINDS = [Momentum, FusedMomentum]


def given(rank: int, step: int) -> np.ndarray:
    return np.asarray(values(100 * step + rank, SIZE), np.float32)


def blended(v: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    return np.float32(BETA) * v + np.float32(1 - BETA) * gradient


def kept_by(exchanges) -> np.ndarray:
    return exchanges.state()["0/v/0"]


def wrap(hvd_tf, optimizer=None, **options):
    options.setdefault("op", hvd_tf.MajorityVote)
    return hvd_tf.DistributedOptimizer(optimizer or KERAS.optimizers.SGD(1.0), **options)


def scale_of(optimizer) -> float:
    return float(optimizer.dynamic_scale if KERAS_3 else optimizer.loss_scale)


def dynamic(initial: float):
    return KERAS.mixed_precision.LossScaleOptimizer(
        KERAS.optimizers.SGD(1.0), initial_scale=initial, dynamic_growth_steps=2
    )


@pytest.mark.parametrize("scale", ["none", "mean_abs"])
@pytest.mark.parametrize("kind", KINDS)
def test_momentum_is_kept_unscaled(hvd_tf, world, kind, scale):
    """While the loss's scale doubles every second step, and a skipped one halves it."""
    optimizer = wrap(hvd_tf, dynamic(64.0), algorithm=kind(BETA), scale=scale)
    variable = tf.Variable(tf.zeros(SIZE))
    optimizer.build([variable])

    @tf.function
    def step(gradient):
        # Keras 3 divides by the scale itself; in Keras 2 whoever scaled the loss has done so.
        factor = optimizer.dynamic_scale if KERAS_3 else 1.0
        optimizer.apply_gradients([(gradient * factor, variable)])

    v = [np.zeros(SIZE, np.float32) for _ in range(world.size)]
    scales, skipped = [], 3
    for turn in range(7):
        scales.append(scale_of(optimizer))
        everyones = [given(rank, turn) for rank in range(world.size)]
        if turn == skipped:
            everyones[-1][2] = np.inf
        else:
            v = [blended(*pair) for pair in zip(v, everyones, strict=True)]
        before = variable.numpy()
        step(everyones[world.rank])
        np.testing.assert_array_equal(kept_by(optimizer._hvd_sign), v[world.rank])
        if turn == skipped:
            np.testing.assert_array_equal(variable.numpy(), before)
            continue
        means = sorted(float(np.abs(signal).mean(dtype=np.float64)) for signal in v)
        size = means[(len(means) - 1) // 2] if scale == "mean_abs" else 1.0
        moved = (before - variable.numpy()) / size
        np.testing.assert_allclose(np.abs(moved), 1.0, rtol=1e-4)
        verdict(v, "coin").check(np.sign(moved))
    assert scales == [64, 64, 128, 128, 64, 64, 128]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tape_that_knows_the_scaler(hvd_tf, world, kind):
    scaler = dynamic(32.0)
    variable = tf.Variable(tf.zeros(SIZE))
    v = np.zeros(SIZE, np.float32)
    exchanges = None
    for turn in range(4):
        gradient = given(world.rank, turn)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable * gradient)
            scaled = scaler.scale_loss(loss) if KERAS_3 else scaler.get_scaled_loss(loss)
        tape = hvd_tf.DistributedGradientTape(
            tape,
            op=hvd_tf.MajorityVote,
            algorithm=kind(BETA),
            loss_scale_optimizer=scaler,
            seed=17,  # no other test's exchange
        )
        exchanges = tape._hvd_sign_exchanges
        gradients = tape.gradient(scaled, [variable])
        if not KERAS_3:
            gradients = scaler.get_unscaled_gradients(gradients)
        scaler.apply_gradients(zip(gradients, [variable], strict=True))
        v = blended(v, gradient)
        np.testing.assert_array_equal(kept_by(exchanges), v)
    assert scale_of(scaler) == 128


@pytest.mark.ranks(1 if KERAS_3 else 1000)  # Keras 2 has no such factor
@pytest.mark.parametrize("algorithm", ["sign", Momentum(BETA)], ids=str)
def test_keras_own_factor_is_known(hvd_tf, world, algorithm):
    inner = KERAS.optimizers.SGD(1.0, loss_scale_factor=256.0)
    optimizer = wrap(hvd_tf, inner, algorithm=algorithm)
    variable = tf.Variable(tf.zeros(2))
    optimizer.apply_gradients([(tf.constant([512.0, -512.0]), variable)])
    assert variable.numpy().tolist() == [-1, 1]
    if algorithm != "sign":
        assert kept_by(optimizer._hvd_sign).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_sees_the_sum_of_a_steps_passes_or_their_mean(hvd_tf, world, kind, average):
    optimizer = wrap(
        hvd_tf,
        algorithm=kind(BETA),
        backward_passes_per_step=2,
        average_aggregated_gradients=average,
    )
    variable = tf.Variable(tf.zeros(SIZE))
    v = np.zeros(SIZE, np.float32)
    for step in range(2):
        passes = [given(world.rank, 2 * step), given(world.rank, 2 * step + 1)]
        for gradient in passes:
            optimizer.apply_gradients([(tf.constant(gradient), variable)])
        v = blended(v, (passes[0] + passes[1]) / np.float32(2 if average else 1))
        np.testing.assert_array_equal(kept_by(optimizer._hvd_sign), v)


@pytest.mark.parametrize("reads", ["every rank", "rank 0"])
def test_a_checkpoint_goes_on(hvd_tf, world, tmp_path, reads):
    """Where rank 0 alone reads it, what ranks have in common is its; momentum begins anew."""

    def start():
        variable = tf.Variable(tf.zeros(SIZE))
        optimizer = wrap(hvd_tf, algorithm=Momentum(BETA), op=Esteem(7))
        return variable, optimizer, tf.train.Checkpoint(optimizer=optimizer)

    def steps(variable, optimizer, turns):
        for turn in turns:
            optimizer.apply_gradients([(tf.constant(given(99, turn)), variable)])  # of all ranks

    variable, optimizer, checkpoint = start()
    steps(variable, optimizer, range(3))
    path = checkpoint.write(str(tmp_path / "state"))
    saved = optimizer._hvd_sign.state()
    again, other, checkpoint = start()
    if reads == "every rank" or world.rank == 0:
        checkpoint.read(path)
    steps(again, other, [3])
    state = other._hvd_sign.state()
    read = reads == "every rank" or world.rank == 0
    v = saved["0/v/0"] if read else np.zeros(SIZE, np.float32)
    np.testing.assert_array_equal(state["0/v/0"], blended(v, given(99, 3)))
    assert state["0/step"] == 4
    everyones = world.allgather(other._hvd_sign.common_state())
    assert len({repr(common) for common in everyones}) == 1
    assert (state["0/rule/judged"] > saved["0/rule/judged"]).all()
    if reads == "every rank":
        steps(variable, optimizer, [3])
        for name, array in optimizer._hvd_sign.state().items():
            np.testing.assert_array_equal(state[name], array)


def test_what_is_common_is_broadcast(hvd_tf, world):
    variable = tf.Variable(tf.zeros(SIZE))
    optimizer = wrap(hvd_tf, algorithm=Momentum(BETA), op=Esteem(7))
    optimizer.apply_gradients([(tf.constant(given(world.rank, 0)), variable)])
    if world.rank == 0:
        common = {
            "0/step": np.array(9),
            "0/rule/judged": np.full(world.size, 100),
            "0/rule/agreed": np.arange(world.size),
        }
        optimizer._hvd_sign.load_state({**common, "0/v/0": np.ones(SIZE, np.float32)})
    optimizer.broadcast_exchange_state(0)
    state = optimizer._hvd_sign.state()
    assert state["0/step"] == 9
    assert state["0/rule/judged"].tolist() == [100] * world.size
    assert state["0/rule/agreed"].tolist() == list(range(world.size))
    own = blended(np.zeros(SIZE, np.float32), given(world.rank, 0))
    np.testing.assert_array_equal(state["0/v/0"], own if world.rank else np.ones(SIZE))


def test_damaged_states_are_refused_whole(hvd_tf, world):
    optimizer = wrap(hvd_tf, algorithm=Momentum(BETA))
    variables = [tf.Variable(tf.zeros(SIZE)), tf.Variable(tf.zeros(SIZE))]
    optimizer.build(variables)
    for variable in variables:  # a session each
        optimizer.apply_gradients([(tf.constant(given(world.rank, 0)), variable)])
    before = optimizer._hvd_sign.state()
    good = {**before, "0/step": np.array(5), "0/v/0": before["0/v/0"] + 1}
    for change, message in (
        ({"1/v/0": np.zeros(SIZE - 1)}, f"expected {SIZE} numbers, got {SIZE - 1}"),
        ({"1/u/0": np.zeros(SIZE)}, "got 'u/0'"),
        ({"1/step": np.array(-3)}, "a whole number from 0"),
        ({"v/0": np.zeros(SIZE)}, "expected names such as '0/step', got 'v/0'"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer._hvd_sign.load_state({**good, **change})
    after = optimizer._hvd_sign.state()
    assert before.keys() == after.keys()
    assert all(np.array_equal(array, after[name]) for name, array in before.items())


def test_a_damaged_state_that_one_rank_has_read_is_refused_by_all(hvd_tf, world):
    optimizer = wrap(hvd_tf, algorithm=Momentum(BETA))
    variable = tf.Variable(tf.zeros(SIZE))
    if world.rank == 0:
        optimizer._hvd_sign.load_state({"0/step": np.array(2), "0/v/0": np.zeros(7)})
    message = refused_alike(world, lambda: optimizer.apply_gradients([(tf.ones(SIZE), variable)]))
    assert f"expected {SIZE} numbers, got 7" in message
