"""``hvd.Compression`` with ``sign`` beside Horovod's own."""

from __future__ import annotations

from typing import Any

import torch

from hvd_sign.compression import Compression as NumpyCompression
from hvd_sign.compression import SignCompressor as NumpySignCompressor
from hvd_sign_torch.worlds import plain


class SignCompressor(NumpySignCompressor):
    """The core's sign compressor, from tensor to tensor.

    An ``allreduce`` given this compressor votes; on its own it packs a tensor of d coordinates
    into uint8[ceil(d/8)] and unpacks that to +-1.
    """

    def compress(self, tensor: torch.Tensor, name: str | None = None) -> tuple[torch.Tensor, Any]:
        """Packs signs.

        Raises:
            TypeError: not fp32, fp64, fp16 or bf16.
            ValueError: NaN or Inf, which have no sign to vote with.
        """
        host = tensor.detach().cpu().resolve_neg().contiguous()
        exact = host.float() if host.dtype == torch.bfloat16 else host
        payload, _ = NumpyCompression.sign.compress(exact.numpy(), name)
        return torch.from_numpy(payload), (tensor.shape, tensor.dtype, tensor.device)

    def decompress(self, tensor: torch.Tensor, context: Any) -> torch.Tensor:
        """Unpacks to +-1."""
        shape, dtype, device = context
        signs = NumpyCompression.sign.decompress(tensor.cpu().numpy(), (tuple(shape), "float32"))
        return torch.from_numpy(signs).to(device, dtype)


class Compression(plain.Compression):  # type: ignore[misc]
    """Horovod's ``none`` and ``fp16``, and ``sign``: 1 bit a coordinate, decided by vote."""

    sign = SignCompressor()
