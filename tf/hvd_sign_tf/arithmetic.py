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


def scaled(verdict: Any, scaler: Any) -> Any:
    """A verdict with the scale that the gradients had, for a scaler that divides by it."""
    if verdict is None:
        return None
    scale = scaler.loss_scale if hasattr(scaler, "loss_scale") else scaler.dynamic_scale
    return verdict * tf.cast(tf.convert_to_tensor(scale), verdict.dtype)
