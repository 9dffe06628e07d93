"""Means told by signs, and 1-bit Adam, through TensorFlow's optimizers, tapes and single votes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from onebit import World
from ranks_tf_sign_optimizers import awkward, lone, stepping  # noqa: F401, a fixture
from tf_helpers import gradients, plain, same_everywhere, values, variables

KERAS = tf.keras
SIZE = 5000
SHAPES = ((64, 10), (10,), (5000,))
WARM = 3


def given(rank, turn):
    return np.asarray(values(100 * turn + rank, SIZE), np.float32)


def told(side, size, turn):
    return side.step([given(rank, turn) for rank in range(size)])


def test_an_optimizer_and_its_checkpoint(hvd_tf, world, tmp_path):
    def make():
        optimizer = hvd_tf.DistributedOptimizer(
            KERAS.optimizers.SGD(1.0), compression=hvd_tf.Compression.onebit(0.75), ties="zero"
        )
        variable = tf.Variable(tf.zeros(SIZE))
        optimizer.build([variable])
        return optimizer, variable, stepping(optimizer, [variable], "graph")

    optimizer, variable, step = make()
    side = World(world.size, SIZE, "zero", 0.75)
    for turn in range(5):
        if turn == 3:
            path = str(tmp_path / f"rank{world.rank}")
            saved = tf.train.Checkpoint(optimizer=optimizer).save(path)
            optimizer, variable, step = make()
            tf.train.Checkpoint(optimizer=optimizer).restore(saved)
        variable.assign(tf.zeros(SIZE))
        step([tf.constant(given(world.rank, turn))])
        np.testing.assert_array_equal(-variable.numpy(), told(side, world.size, turn))
        kept = optimizer._hvd_sign.state()
        np.testing.assert_array_equal(kept["0/residual/0"], side.ranks[world.rank].left)


def test_a_tape_and_single_votes_by_name(hvd_tf, world):
    variable = tf.Variable(tf.zeros(SIZE))
    sides = [World(world.size, SIZE) for _ in range(2)]
    for turn in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable * given(world.rank, turn))
        tape = hvd_tf.DistributedGradientTape(
            tape, compression=hvd_tf.Compression.onebit(), ties="zero", seed=29
        )
        out = tape.gradient(loss, [variable])[0]
        np.testing.assert_array_equal(out.numpy(), told(sides[0], world.size, turn))
        out = hvd_tf.allreduce(
            tf.constant(given(world.rank, turn)),
            compression=hvd_tf.Compression.onebit(),
            name="told",
            ties="zero",
        )
        np.testing.assert_array_equal(out.numpy(), told(sides[1], world.size, turn))


def adam(hvd_tf, rate=0.01, **options):
    options = {"weight_decay": 0.125, "warmup_steps": WARM, "ties": "zero"} | options
    return hvd_tf.OneBitAdam(rate, **options)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_adam_at_first_and_then_by_what_is_told(hvd_tf, world, mode):
    owned, same = variables(*SHAPES), variables(*SHAPES)
    optimizer = hvd_tf.DistributedOptimizer(adam(hvd_tf))
    reference = KERAS.optimizers.AdamW(0.01, weight_decay=0.125)
    step = stepping(optimizer, owned, mode)
    sides = [World(world.size, int(np.prod(shape)), "zero", 0.9) for shape in SHAPES]
    v = [np.zeros(shape, np.float32) for shape in SHAPES]
    for turn in range(6):
        everyones = [
            [np.array(g.numpy()) for g in gradients(r, owned, turn)] for r in range(world.size)
        ]
        for row in everyones:
            row[1][:2] = 0  # which then have no variance
        before = [plain(p) for p in owned]
        step([tf.constant(g) for g in everyones[world.rank]])
        assert same_everywhere(world, *owned)
        for i, side in enumerate(sides):
            rows = [row[i] for row in everyones]
            if turn < WARM:
                mean = np.sum(rows, axis=0) / world.size
                v[i] = v[i] + (mean**2 - v[i]) * np.float32(0.001)
                reference.build(same)
                for rank, row in zip(side.ranks, rows, strict=True):
                    rank.m = np.float32(0.9) * rank.m + np.float32(0.1) * row.ravel()
                continue
            found = side.step(rows).reshape(v[i].shape)
            root = np.where(v[i] > 0, np.sqrt(v[i]) + 1e-7, np.inf)
            factor = np.sqrt(1 - 0.999**WARM) / (1 - 0.9 ** (turn + 1))
            want = before[i] * (1 - 0.01 * 0.125) - 0.01 * np.clip(factor * found / root, -1, 1)
            np.testing.assert_allclose(plain(owned[i]), want, rtol=5e-4, atol=1e-5)
        if turn < WARM:
            means = [np.mean([row[i] for row in everyones], axis=0) for i in range(len(SHAPES))]
            reference.apply_gradients(
                [(tf.constant(m), p) for m, p in zip(means, same, strict=True)]
            )
            for p, q in zip(owned, same, strict=True):
                np.testing.assert_allclose(plain(p), plain(q), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_alone_as_in_a_world_of_one(hvd_tf, lone, world, dtype):  # noqa: F811
    """With zeros, subnormals and chunks that are not finite at times."""
    alone, among = variables(*SHAPES, dtype=dtype), variables(*SHAPES, dtype=dtype)
    one, other = adam(hvd_tf), adam(hvd_tf)
    other = hvd_tf.DistributedOptimizer(other, process_set=lone[world.rank])
    first, second = stepping(one, alone, "graph"), stepping(other, among, "graph")
    for turn in range(6):
        rows = gradients(world.rank, alone, turn)
        if turn >= WARM:
            rows = awkward(world.rank, alone, turn)
        first(rows)
        second(rows)
        for p, q in zip(alone, among, strict=True):
            np.testing.assert_array_equal(plain(p), plain(q))


def test_alone_it_goes_on_from_a_checkpoint(hvd_tf, tmp_path, world):
    owned, optimizer = variables(*SHAPES), adam(hvd_tf)
    step = stepping(optimizer, owned, "graph")
    for turn in range(5):
        step(gradients(world.rank, owned, turn))
    path = str(tmp_path / f"rank{world.rank}")
    saved = tf.train.Checkpoint(optimizer=optimizer, owned=owned).save(path)
    others, other = variables(*SHAPES), adam(hvd_tf)
    other.build(others)
    tf.train.Checkpoint(optimizer=other, owned=others).restore(saved)
    onward = stepping(other, others, "graph")
    for turn in range(5, 7):
        step(gradients(world.rank, owned, turn))
        onward(gradients(world.rank, owned, turn))
    for p, q in zip(owned, others, strict=True):
        np.testing.assert_array_equal(plain(p), plain(q))


def test_a_file_of_keras_has_its_arguments(hvd_tf):
    optimizer = adam(hvd_tf, beta_1=0.75, epsilon=1e-5)
    config = optimizer.get_config()
    made = hvd_tf.OneBitAdam.from_config(config)
    assert made.get_config() == config
    assert (config["beta_1"], config["warmup_steps"]) == (0.75, WARM)


def test_what_cannot_be_is_refused(hvd_tf):
    for wrong, sentence in (
        ({"warmup_steps": 0}, "warmup_steps: expected a whole number of steps from 1, got 0"),
        ({"epsilon": 0.0}, "epsilon: expected a finite number above zero, got 0.0"),
        ({"beta_2": 1.0}, r"beta_2: expected a number in \[0, 1\), got 1.0"),
        ({"beta_1": 1.0}, r"onebit: beta: expected a number in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            adam(hvd_tf, **wrong)
    with pytest.raises(ValueError, match="warmup_steps: expected 3, as of OneBitAdam, got 4"):
        hvd_tf.DistributedOptimizer(adam(hvd_tf), warmup_steps=4)
    with pytest.raises(ValueError, match="OneBitAdam has its own, got another one"):
        hvd_tf.DistributedOptimizer(adam(hvd_tf), compression=hvd_tf.Compression.sign)
