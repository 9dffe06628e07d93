"""Gradients that Keras 2's optimizers compute and hand out before they are applied."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

KERAS = tf.keras
KERAS_2 = not hasattr(KERAS.optimizers.SGD, "apply")
NEVER = 1000
pytestmark = pytest.mark.ranks(1 if KERAS_2 else NEVER)

KINDS = pytest.mark.parametrize("kind", ["new", "legacy"])
MODES = pytest.mark.parametrize("mode", [lambda f: f, tf.function], ids=["eager", "graph"])


def sgd(kind):
    return KERAS.optimizers.legacy.SGD(1.0) if kind == "legacy" else KERAS.optimizers.SGD(1.0)


@KINDS
@MODES
@pytest.mark.parametrize("halved", [False, True], ids=["as they are", "halved"])
def test_they_are_reduced_once(hvd_tf, world, kind, mode, halved):
    weights, bias = tf.Variable([1.0, 2.0]), tf.Variable([3.0])
    optimizer = hvd_tf.DistributedOptimizer(sgd(kind))
    number = float(world.rank + 1)

    def loss():
        return number * (tf.reduce_sum(weights) + 10 * tf.reduce_sum(bias))

    def step():
        pairs = optimizer.compute_gradients(loss, [weights, bias])
        if halved:
            pairs = [(gradient / 2, variable) for gradient, variable in pairs]
        optimizer.apply_gradients(pairs)
        return [gradient for gradient, _ in pairs]

    mean = (world.size + 1) / 2 / (2 if halved else 1)
    run = mode(step)
    for turn in range(1, 3):
        first, second = run()
        np.testing.assert_allclose(first, [mean, mean])
        np.testing.assert_allclose(second, [10 * mean])
        np.testing.assert_allclose(weights, [1 - turn * mean, 2 - turn * mean], rtol=1e-6)
        np.testing.assert_allclose(bias, [3 - turn * 10 * mean], rtol=1e-6)
    assert int(optimizer.iterations) == 2


@MODES
@pytest.mark.parametrize("average", [False, True])
def test_passes_are_added_up_before(hvd_tf, world, mode, average):
    variable = tf.Variable([0.0])
    optimizer = hvd_tf.DistributedOptimizer(
        sgd("legacy"), backward_passes_per_step=3, average_aggregated_gradients=average
    )
    number = float(world.rank + 1)

    def step():
        pairs = optimizer.compute_gradients(lambda: number * tf.reduce_sum(variable), [variable])
        optimizer.apply_gradients(pairs)
        return pairs[0][0]

    run = mode(step)
    mean = (world.size + 1) / 2 * (1 if average else 3)
    for turn in range(1, 3):
        for passed in (1, 2):  # this rank's own sums, which are not applied
            np.testing.assert_allclose(run(), [passed * number])
            np.testing.assert_allclose(variable, [-(turn - 1) * mean])
        np.testing.assert_allclose(run(), [mean], rtol=1e-6)
        np.testing.assert_allclose(variable, [-turn * mean], rtol=1e-6)
    assert int(optimizer.iterations) == 6


@KINDS
@MODES
def test_verdicts_are_voted_on_once(hvd_tf, world, kind, mode):
    variable = tf.Variable([0.0, 0.0])
    optimizer = hvd_tf.DistributedOptimizer(
        sgd(kind), compression=hvd_tf.Compression.sign, scale="mean_abs"
    )
    slope = tf.constant([world.rank + 1.0, -world.rank - 1.0])

    def step():
        pairs = optimizer.compute_gradients(lambda: tf.reduce_sum(slope * variable), [variable])
        pairs = [(gradient * 10, variable) for gradient, _ in pairs]
        optimizer.apply_gradients(pairs)
        return pairs[0][0]

    verdict = mode(step)().numpy() / 10
    assert verdict[0] == -verdict[1] > 0
    np.testing.assert_allclose(variable, -10 * verdict)  # a vote on it would have lost the ten
    # What did not come from there is exchanged when it is applied.
    optimizer.apply_gradients([(slope, variable)])
    np.testing.assert_allclose(variable, -11 * verdict, rtol=1e-6)


def test_a_class_that_computes_its_own(hvd_tf, world):
    class Own(KERAS.optimizers.Optimizer):
        def __init__(self, name="own", **options):
            super().__init__(name=name, **options)
            self._learning_rate = self._build_learning_rate(0.1)

        def get_gradients(self, loss, params):
            return [tf.constant([float(world.rank)])]

        def update_step(self, gradient, variable):
            variable.assign_add(gradient)

    optimizer = hvd_tf.DistributedOptimizer(Own())
    variable = tf.Variable([0.0])
    (gradient,) = optimizer.get_gradients(None, [variable])
    optimizer.apply_gradients([(gradient, variable)])
    np.testing.assert_allclose(variable, [(world.size - 1) / 2])
