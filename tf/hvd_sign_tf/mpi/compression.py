"""``hvd.Compression`` as Horovod has it: what is done to tensors around an allreduce."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hvd_sign.standalone.compression import Compressor, NoneCompressor


class FP16Compressor(Compressor):
    """Makes floating-point tensors fp16.

    MPI knows no fp16, so that over MPI alone their sums travel in fp32: this saves no bytes, but
    gives the numbers that Horovod gives.
    """

    @staticmethod
    def compress(tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """The tensor in fp16, and its type."""
        dtype = tensor.dtype
        return (tf.cast(tensor, tf.float16) if dtype.is_floating else tensor), dtype

    @staticmethod
    def decompress(tensor: tf.Tensor, context: Any) -> tf.Tensor:
        """The tensor in the type that it had."""
        return tf.cast(tensor, context)


class Compression:
    """The compressors that there are."""

    none = NoneCompressor
    fp16 = FP16Compressor
