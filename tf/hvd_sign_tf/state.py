"""What an exchange keeps from step to step, in TensorFlow's checkpoints and Keras' files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from hvd_sign_tf.exchanges import Exchanges

STATE_FILE = "hvd_sign.npz"
"""In the assets of a ``.keras`` file."""


class ExchangeState(tf.train.experimental.PythonState):
    """The state of some exchanges, as a leaf of a ``tf.train.Checkpoint``.

    Whatever the core's algorithms keep is in it, under names of their own.
    """

    def __init__(self, exchanges: Exchanges) -> None:
        super().__init__()
        self._exchanges = exchanges

    def serialize(self) -> bytes:
        """The arrays, in numpy's file format."""
        file = io.BytesIO()
        np.savez(file, **self._exchanges.state())
        return file.getvalue()

    def deserialize(self, value: bytes) -> None:
        """Goes on from what ``serialize()`` returned."""
        with np.load(io.BytesIO(value)) as arrays:
            self._exchanges.load_state(dict(arrays))
