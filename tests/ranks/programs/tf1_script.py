"""A script of TensorFlow 1's kind: sessions, global variables, devices chosen after init().

With the argument `part` the first rank is on its own, so that Horovod's ranks are not the world's.
"""

import sys

import numpy as np
import pytest
import tensorflow as tf
from mpi4py import MPI

import hvd_sign.tensorflow as hvd
import hvd_sign.tensorflow.keras as keras_hvd

world = MPI.COMM_WORLD
if sys.argv[1] == "part":
    hvd.init(comm=world.Split(int(world.rank > 0), world.rank))
    assert hvd.size() == (world.size - 1 if world.rank else 1)
else:
    hvd.init()
    assert hvd.size() == world.size
tf.config.set_visible_devices([], "GPU")  # refused once TensorFlow has done anything
tf.config.threading.set_intra_op_parallelism_threads(1)
# The binding can still be begun where eager mode is off for good.
hvd.shutdown()
v1 = tf.compat.v1
v1.disable_eager_execution()
hvd.init()
rank, size = hvd.rank(), hvd.size()
mine = np.array([1.0, 10.0 * rank], np.float32)

total = hvd.allreduce(tf.constant(mine), op=hvd.Sum)
rows = hvd.allgather(tf.constant(mine[None]))
weights = v1.get_variable("weights", initializer=tf.constant(mine))
optimizer = hvd.DistributedOptimizer(v1.train.GradientDescentOptimizer(1.0))
# Horovod divides by the number of ranks: the gradient is the mean of the ranks' numbers plus one.
step = optimizer.minimize(tf.reduce_sum(weights * (rank + 1.0)))
give_out = hvd.broadcast_global_variables(size - 1)
for vote in (
    lambda: hvd.allreduce(tf.constant(mine), op=hvd.MajorityVote),
    lambda: hvd.grouped_allreduce([tf.constant(mine)], compression=hvd.Compression.sign),
):
    with pytest.raises(RuntimeError, match=r"expected eager mode or a tf\.function"):
        vote()
with v1.Session() as session:
    session.run(v1.global_variables_initializer())
    assert session.run(total).tolist() == [size, 5 * size * (size - 1)]
    assert session.run(rows).tolist() == [[1, 10 * r] for r in range(size)]
    session.run(give_out)
    assert session.run(weights).tolist() == [1, 10 * (size - 1)]
    session.run(step)
    mean = (size + 1) / 2
    np.testing.assert_allclose(session.run(weights), [1 - mean, 10 * (size - 1) - mean])
    assert hvd.broadcast_object({"rank": rank}, size - 1, session=session) == {"rank": size - 1}

assert keras_hvd.allreduce(mine, name="mean").tolist() == [1, 5 * (size - 1)]
assert keras_hvd.allgather(mine, name="rows").tolist() == [
    n for r in range(size) for n in (1, 10 * r)
]
assert keras_hvd.broadcast(mine, size - 1, name="last").tolist() == [1, 10 * (size - 1)]

keras = tf.keras
keras.utils.set_random_seed(rank)
model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1, name="dense")])
wrapped = keras_hvd.DistributedOptimizer(keras.optimizers.legacy.SGD(0.0))
model.compile(optimizer=wrapped, loss="mae")
history = model.fit(
    np.full((4, 2), 1.0 + rank),
    np.zeros((4, 1)),
    steps_per_epoch=1,
    verbose=0,
    callbacks=[
        keras_hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        keras_hvd.callbacks.MetricAverageCallback(),
        keras_hvd.callbacks.LearningRateWarmupCallback(0.5, warmup_epochs=1, steps_per_epoch=1),
    ],
)
everyones = world.allgather((model.get_weights(), history.history))
for everyone, said in everyones:
    np.testing.assert_array_equal(everyone[0], everyones[0][0][0])
    assert said == everyones[0][1]
assert history.history["lr"] == [0.5]
hvd.shutdown()
print(f"rank {world.rank} done", flush=True)
