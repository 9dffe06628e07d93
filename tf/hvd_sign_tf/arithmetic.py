"""What is done to one gradient: a tensor, ``tf.IndexedSlices``, or None where there is none."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def densified(gradient: Any) -> Any:
    """A gradient without ``tf.IndexedSlices``."""
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


def divided(gradient: Any, divisor: int) -> Any:
    """A gradient divided by a number; integers become floating-point numbers, as in Horovod."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = divided(gradient.values, divisor)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    if divisor == 1 and gradient.dtype.is_floating:
        return gradient
    return gradient / tf.cast(divisor, gradient.dtype)


def loss_scale(optimizer: Any) -> tf.Tensor:
    """What an optimizer multiplies losses by, and divides gradients by: float32[]."""
    if hasattr(optimizer, "loss_scale"):  # in Keras 2
        scale = optimizer.loss_scale
    elif optimizer.loss_scale_factor is not None:
        scale = optimizer.loss_scale_factor
    else:
        scale = optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale
    return tf.cast(tf.convert_to_tensor(scale), tf.float32)
