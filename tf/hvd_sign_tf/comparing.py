"""What ranks compare, every so many steps, of the variables and the optimizer of an exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from hvd_sign.runtime.comparing import options_text

APART = {"learning_rate", "name"}
"""Of an optimizer's options: what is compared by itself, and what need not be the same."""


class Compared(NamedTuple):
    """What ranks are to have in common.

    Attributes:
        names: for messages.
        tensors: reads as many tensors, in a graph or eagerly.
    """

    names: list[str]
    tensors: Callable[[], list[tf.Tensor]]


def compared(names: Sequence[str], variables: Sequence[Any], optimizer: Any) -> Compared:
    """Some variables, and the options of the optimizer that steps on them.

    Args:
        names: of the variables.
        variables: of which those that are only tensors are left out.
        optimizer: of Keras; None: nobody knows it.
    """
    kept = [(n, v) for n, v in zip(names, variables, strict=True) if hasattr(v, "assign")]
    found = [f"variable {name!r}" for name, _ in kept]
    if optimizer is not None:
        found += ["the learning rate", "the optimizer's options"]

    def tensors() -> list[tf.Tensor]:
        read = [tf.convert_to_tensor(variable) for _, variable in kept]
        return read if optimizer is None else [*read, *_options(optimizer)]

    return Compared(found, tensors)


def _options(optimizer: Any) -> list[tf.Tensor]:
    with tf.init_scope():  # what Keras reads of variables it reads eagerly
        text = options_text(optimizer.get_config(), APART)
    return [_rate(optimizer), tf.constant(np.frombuffer(text.encode(), np.uint8))]


def _rate(optimizer: Any) -> tf.Tensor:
    """The learning rate of the next step."""
    if hasattr(optimizer, "_decayed_lr"):  # a legacy optimizer of Keras 2
        with tf.init_scope():
            optimizer._create_hypers()
            _ = optimizer.iterations
        return optimizer._decayed_lr(tf.float32)
    if hasattr(optimizer, "apply"):  # of Keras 3
        return tf.convert_to_tensor(optimizer.learning_rate)
    rate = getattr(optimizer, "_learning_rate", 0.0)  # of a schedule learning_rate is the last one
    return tf.convert_to_tensor(rate(optimizer.iterations) if callable(rate) else rate)
