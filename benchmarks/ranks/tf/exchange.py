"""A gradient tape under each method of exchanging gradients, for TensorFlow."""

from __future__ import annotations

import tensorflow as tf

import hvd_sign.tensorflow as hvd
from benchmarks.methods.catalogue import Method


def distributed(tape: tf.GradientTape, method: Method, seed: int) -> tf.GradientTape:
    """The tape whose gradients are what a method makes of all workers' gradients.

    Args:
        tape: of the loss.
        method: of exchanging gradients.
        seed: of what is random in the method; the same on all ranks.
    """
    if method.group == "alone":
        return tape
    compression, op = getattr(hvd.Compression, method.compression), getattr(hvd, method.op)
    options = dict(method.options, seed=seed) if method.group == "ours" else {}
    return hvd.DistributedGradientTape(tape, compression=compression, op=op, **options)
