"""Optimizers that reduce gradients in the place of ones that vote; after a join nobody compares."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tf_helpers import variables


@pytest.mark.ranks(2)
@pytest.mark.parametrize("in_graph", [False, True])
def test_one_rank_reduces_what_the_others_vote_on(hvd_tf, world, in_graph):
    sign = {"compression": hvd_tf.Compression.sign} if world.rank else {}

    def step(**arguments):
        (variable,) = variables((3,))
        optimizer = hvd_tf.DistributedOptimizer(tf.keras.optimizers.SGD(0.5), **arguments)
        optimizer.build([variable])
        before = variable.numpy()

        def train():
            if hasattr(optimizer, "minimize"):  # by which alone Horovod's optimizer reduces
                optimizer.minimize(lambda: tf.reduce_sum(variable), [variable])
            else:  # Keras 3
                optimizer.apply_gradients([(tf.ones(3), variable)])

        (tf.function(train) if in_graph else train)()
        return variable.numpy() - before

    sentence = "method differs between ranks: allreduce on rank 0; vote on rank"
    with pytest.raises(Exception, match=sentence):  # autograph has classes of its own
        step(**sign)
    np.testing.assert_allclose(step(), -0.5)
