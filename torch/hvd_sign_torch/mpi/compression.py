"""``hvd.Compression`` as Horovod has it: what is done to tensors around an allreduce."""

from __future__ import annotations

import torch

from hvd_sign.standalone.compression import Compressor, NoneCompressor


class FP16Compressor(Compressor):
    """Makes floating-point tensors fp16.

    MPI knows no fp16, so that over MPI alone their sums travel in fp32: this saves no bytes, but
    gives the numbers that Horovod gives.
    """

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
        """The tensor in fp16, and the type that it had."""
        return (tensor.half() if tensor.is_floating_point() else tensor), tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, context: torch.dtype) -> torch.Tensor:
        """The tensor in the type that it had."""
        return tensor.to(context)


class Compression:
    """The compressors that there are."""

    none = NoneCompressor
    fp16 = FP16Compressor
