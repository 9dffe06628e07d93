"""Values of operations in programs of TensorFlow 1, which have sessions."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hvd_sign_tf.bridge import in_old_graph


def value_of(result: Any) -> Any:
    """What an operation gave; in a ``tf.compat.v1`` graph its value, by Keras' session.

    Horovod's helpers for Keras do so too.
    """
    if not in_old_graph():
        return result
    return tf.compat.v1.keras.backend.get_session().run(result)
