"""PyTorch's tensors in host memory, of any strides: the kernels take them as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hvd_sign.core.places import Place
from hvd_sign.devices import HostArrays, HostDevice, Operand


class TorchHost(HostDevice):
    """Tensors in host memory; strides go through a contiguous copy."""

    def host_arrays(self, operand: Operand) -> HostArrays:
        """The tensors; without ``out`` if it needs a copy."""
        signal, out = operand.signal, operand.out
        return HostArrays(
            None if signal is None else signal.resolve_neg().contiguous(),
            out if out is not None and _contiguous(out) else None,
        )

    def flat(self, tensor: torch.Tensor) -> npt.NDArray[Any]:
        """The numbers as numpy's, in fp32, or in fp64 for fp64."""
        tensor = tensor.resolve_neg()  # which PyTorch puts off, and memory knows nothing of
        wide = tensor if tensor.dtype == torch.float64 else tensor.float()
        numbers: npt.NDArray[Any] = wide.reshape(-1).numpy()
        return numbers

    def write(self, operand: Operand, place: Place, scale: float) -> None:
        """Writes the verdict, through a contiguous copy if it needs one."""
        out = operand.out
        if _contiguous(out):
            place.write(out, scale)
        else:
            dense = torch.empty(out.shape, dtype=out.dtype)
            place.write(dense, scale)
            fill(out, dense)

    def read(self, operand: Operand) -> npt.NDArray[np.float32] | None:
        """The signal in fp32, which host fp32 is already."""
        if operand.signal is None:
            return None
        numbers: npt.NDArray[np.float32] = operand.signal.resolve_neg().reshape(-1).float().numpy()
        return numbers

    def take(self, operand: Operand, values: npt.NDArray[np.floating[Any]]) -> None:
        """Overwrites the tensor with numbers."""
        out = operand.out
        if out is not None:
            fill(out, torch.from_numpy(values).reshape(out.shape) * operand.factor)


def fill(out: torch.Tensor, values: torch.Tensor) -> None:
    """Overwrites a tensor; one of inference mode only lets itself be changed in that mode."""
    with torch.inference_mode(out.is_inference()):
        out.copy_(values)


def _contiguous(out: torch.Tensor) -> bool:
    """Whether the memory of ``out`` holds its numbers, one after another."""
    return bool(out.is_contiguous()) and not out.is_neg()


TORCH_HOST = TorchHost()
