"""Horovod's elastic run under ours: what Horovod reports begins again with votes, nothing else."""

from __future__ import annotations

import pytest
import tensorflow as tf

import hvd_sign.tensorflow as hvd
import hvd_sign.tensorflow.keras as keras_hvd
from hvd_sign_tf.errors import RankLostError

hvd.init()
weights = tf.Variable([float(hvd.rank())])
calls = []


@hvd.elastic.run
def train(state: object, error: Exception | None) -> str:
    calls.append(hvd.allreduce(tf.constant([1.0, -2.0]), op=hvd.MajorityVote).numpy().tolist())
    if error is not None and len(calls) == 1:
        raise error
    return "trained"


def outcome(error: Exception | None) -> object:
    calls.clear()
    return train(hvd.elastic.TensorFlowState([weights], turn=0), error)


internal = "node HorovodAllreduce: Horovod has been shut down"
for again in (
    hvd.elastic.HorovodInternalError("as if a rank had been lost"),
    tf.errors.UnknownError(None, None, internal),
):
    assert outcome(again) == "trained"
    assert calls == [[1.0, -1.0]] * 2
for final in (
    tf.errors.UnknownError(None, None, "a mistake of the program's"),
    RankLostError(None, None, "rank 1 has ended"),
    ValueError("another one"),
):
    with pytest.raises(type(final), match=str(final)):
        outcome(final)
    assert len(calls) == 1

model = tf.keras.Sequential([tf.keras.layers.Input((2,)), tf.keras.layers.Dense(1)])
for kind in (keras_hvd.elastic.KerasState, hvd.elastic.TensorFlowKerasState):
    voting = hvd.DistributedOptimizer(
        tf.keras.optimizers.legacy.SGD(0.1), compression=hvd.Compression.sign
    )
    with pytest.raises(NotImplementedError, match="votes, which elastic jobs do not serve"):
        kind(model, voting)
    kind(model, hvd.DistributedOptimizer(tf.keras.optimizers.legacy.SGD(0.1)))
print(f"rank {hvd.rank()} done", flush=True)
hvd.shutdown()
