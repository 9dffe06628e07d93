"""``hvd.Compression`` with ``sign`` beside the runtime's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from hvd_sign.compression import Compression as NumpyCompression
from hvd_sign.compression import SignCompressor as NumpySignCompressor
from hvd_sign_tf.worlds import plain


class SignCompressor(NumpySignCompressor):
    """The core's sign compressor, from tensor to tensor.

    An ``allreduce`` given this compressor votes; on its own, eagerly, it packs a tensor of d
    coordinates into uint8[ceil(d/8)] and unpacks that to +-1.
    """

    def compress(self, tensor: tf.Tensor, name: str | None = None) -> tuple[tf.Tensor, Any]:
        """Packs signs.

        Raises:
            TypeError: not fp32, fp64, fp16 or bf16.
            ValueError: NaN or Inf, which have no sign to vote with.
        """
        payload, context = NumpyCompression.sign.compress(np.asarray(tensor), name)
        return tf.constant(payload), context

    def decompress(self, tensor: tf.Tensor, context: Any) -> tf.Tensor:
        """Unpacks to +-1."""
        return tf.constant(NumpyCompression.sign.decompress(np.asarray(tensor), context))


class Compression(plain.Compression):
    """The runtime's ``none`` and ``fp16``, and ``sign``: 1 bit a coordinate, decided by vote."""

    sign = SignCompressor()
