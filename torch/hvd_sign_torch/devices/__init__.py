"""Where PyTorch's tensors live, one file a device; the one place that asks for it."""

from __future__ import annotations

import torch

from hvd_sign.devices import Operand
from hvd_sign_torch.devices.host import TORCH_HOST
from hvd_sign_torch.devices.operations import TensorOperations

__all__ = ["TORCH_HOST", "TensorOperations", "dtype_name", "operand_of"]


def dtype_name(tensor: torch.Tensor) -> str:
    """The element type's name, such as ``"float32"``."""
    return str(tensor.dtype).removeprefix("torch.")


def operand_of(
    signal: torch.Tensor | None, out: torch.Tensor, factor: float = 1.0, unscale: float = 1.0
) -> Operand:
    """What this rank brings to a vote on a tensor, wherever it lives.

    Args:
        signal: what is voted on, dense; None: there is none on this rank.
        out: takes the verdict; may be ``signal``.
        factor: multiplies the verdict.
        unscale: multiplies the signal before an algorithm with state sees it.
    """
    device = TORCH_HOST if out.device.type == "cpu" else TensorOperations(out)
    return Operand(device, signal, out, factor, unscale)
