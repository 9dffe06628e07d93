"""A vote on one tensor of TensorFlow's, in ranks of another framework's benchmark."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

import hvd_sign.tensorflow as hvd
from benchmarks.ranks.tf.program import use_one_core


class Vote:
    """A tf.function that votes on a tensor; it is compiled by the first call.

    Args:
        name: of the vote, the same on all ranks.
        signal: float32[d], this rank's input.
    """

    def __init__(self, name: str, signal: np.ndarray) -> None:
        if not hvd.is_initialized():
            use_one_core()
            hvd.init()
        self._signal = tf.constant(signal)

        def vote(signal: tf.Tensor) -> tf.Tensor:
            return hvd.allreduce(signal, op=hvd.MajorityVote, name=name)

        self._function = tf.function(vote, autograph=False)

    def exchange(self) -> None:
        """Votes; returns when the verdict is there."""
        self._verdict = self._function(self._signal)

    def verdict(self) -> np.ndarray:
        """The last verdict, float32[d]."""
        return self._verdict.numpy()
