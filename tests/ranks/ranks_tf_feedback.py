"""Error feedback through TensorFlow's optimizers, tapes and single votes, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from feedback import Rank
from reference import lower_median, verdict
from tf_helpers import values

KERAS = tf.keras
SIZE = 300


def given(rank, turn):
    return np.asarray(values(100 * turn + rank, SIZE), np.float32)


class Sides:
    """What every rank has left."""

    def __init__(self, size, beta):
        self.ranks = [Rank(SIZE, "zero", (beta, beta) if beta else ()) for _ in range(size)]

    def check(self, turn, got):
        signals = [side.step(given(rank, turn)) for rank, side in enumerate(self.ranks)]
        scale = lower_median([float(side.sent) for side in self.ranks])
        verdict(signals, "zero").check(got, scale, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.75])
def test_an_optimizer(hvd_tf, world, beta):
    optimizer = hvd_tf.DistributedOptimizer(
        KERAS.optimizers.SGD(1.0), compression=hvd_tf.Compression.ef_sign(beta), ties="zero"
    )
    variable = tf.Variable(tf.zeros(SIZE))
    optimizer.build([variable])

    @tf.function
    def step(gradient):
        optimizer.apply_gradients([(gradient, variable)])

    sides = Sides(world.size, beta)
    for turn in range(5):
        variable.assign(tf.zeros(SIZE))
        step(given(world.rank, turn))
        sides.check(turn, -variable.numpy())
        kept = optimizer._hvd_sign.state()
        np.testing.assert_array_equal(kept["0/residual/0"], sides.ranks[world.rank].e)


def test_a_tape(hvd_tf, world):
    variable = tf.Variable(tf.zeros(SIZE))
    sides = Sides(world.size, 0.0)
    for turn in range(4):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variable * given(world.rank, turn))
        tape = hvd_tf.DistributedGradientTape(
            tape,
            op=hvd_tf.MajorityVote,
            algorithm="ef_sign",
            ties="zero",
            seed=23,  # no other test's exchange
        )
        sides.check(turn, tape.gradient(loss, [variable])[0].numpy())


def test_single_votes_by_name(hvd_tf, world):
    sides = Sides(world.size, 0.0)
    for turn in range(4):
        out = hvd_tf.allreduce(
            tf.constant(given(world.rank, turn)),
            compression=hvd_tf.Compression.ef_sign(),
            name="fed back",
            ties="zero",
        )
        sides.check(turn, out.numpy())
