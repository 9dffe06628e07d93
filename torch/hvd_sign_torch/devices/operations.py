"""Tensors packed and unpacked with PyTorch's own operations, on whatever device they live.

Only bits cross the bus.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hvd_sign.core.buckets import BLOCK, TensorSpec
from hvd_sign.core.places import CHUNK, Packed, Planes, Words
from hvd_sign.devices import Operand, PlaneDevice
from hvd_sign_torch.devices.host import fill

_BITS = [1, 2, 4, 8, 16, 32, 64, 128]


class TensorOperations(PlaneDevice):
    """The device of one tensor in one vote.

    Work queued on the caller's stream is waited for by event; the progress thread works on a
    stream of its own and never synchronises the whole device.

    Args:
        tensor: lives there; what is queued on the current stream comes before the vote.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._device = tensor.device
        self._ready: Any = None
        if tensor.is_cuda:
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record(torch.cuda.current_stream(tensor.device))

    def zeros(self, spec: TensorSpec, like: torch.Tensor) -> torch.Tensor:
        """A tensor on the device."""
        wide = torch.float64 if spec.dtype == "float64" else torch.float32
        return torch.zeros(spec.size, dtype=wide, device=like.device)

    def to_host(self, array: torch.Tensor) -> npt.NDArray[Any]:
        """A copy."""
        (numbers,) = _to_host(array)
        return numbers

    def from_host(self, numbers: npt.NDArray[Any], array: torch.Tensor) -> None:
        """Copies to the device."""
        array.copy_(torch.from_numpy(np.ascontiguousarray(numbers)).reshape(-1))

    def flat(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in one dimension, in fp32, or in fp64 for fp64."""
        flat = tensor.reshape(-1)
        return flat if flat.dtype == torch.float64 else flat.float()

    def planes(
        self, signal: torch.Tensor, kept: Sequence[torch.Tensor], *, want_abs: bool
    ) -> tuple[Planes, torch.Tensor]:
        """Packs on the device; bits and three numbers come to the host."""
        values = _padded(signal, CHUNK).reshape(-1, CHUNK)
        sound = torch.isfinite(values).all(1, keepdim=True)
        for array in kept:
            sound &= torch.isfinite(_padded(array, CHUNK).reshape(-1, CHUNK)).all(1, keepdim=True)
        values = torch.where(sound, values, 0)
        lengths = torch.full((sound.numel(),), CHUNK, device=sound.device)
        lengths[-1] -= values.numel() - signal.numel()
        # Numbers that fp64 holds exactly, and a sum that is taken in it.
        seen = torch.zeros(3, dtype=torch.float64, device=sound.device)
        seen[0] = (~sound).sum()
        seen[1] = (lengths * sound.reshape(-1)).sum()
        if want_abs:
            seen[2] = _abs_sum(values)
        signs, zeros, numbers = _to_host(_packed(values < 0), _packed(values == 0), seen)
        bad, finite, total = numbers.tolist()
        packed = Packed(int(bad), int(finite), total)
        coordinates = sound.expand(-1, CHUNK).reshape(-1)[: signal.numel()]
        return Planes(signs.view(np.uint64), zeros.view(np.uint64), packed), coordinates

    def keep(
        self, sound: torch.Tensor, new: torch.Tensor, old: torch.Tensor, into: torch.Tensor
    ) -> None:
        """Without a wait for the device."""
        into.copy_(torch.where(sound, new, old))

    def unpack(self, out: torch.Tensor, signs: Words, keep: Words, scale: float) -> None:
        """Unpacks on the device, and waits for it."""
        verdict = 1 - 2 * _bits(signs, out.device).to(torch.int8)
        verdict = verdict * _bits(keep, out.device)
        flat = verdict[: out.numel()].to(out.dtype)
        most = torch.finfo(flat.dtype).max
        fill(out, (flat * max(-most, min(scale, most))).reshape(out.shape))  # never an infinity
        self._wait()

    def read(self, operand: Operand) -> npt.NDArray[np.float32] | None:
        """The signal in fp32, brought to the host."""
        if operand.signal is None:
            return None
        with self.working(operand):
            (numbers,) = _to_host(operand.signal.reshape(-1).float())
        return numbers

    def take(self, operand: Operand, values: npt.NDArray[np.floating[Any]]) -> None:
        """Takes numbers in the place of a verdict to the device."""
        if operand.out is not None:
            with self.working(operand):
                numbers = _to_device(values, self._device) * operand.factor
                fill(operand.out, numbers.reshape(operand.out.shape))
                self._wait()

    def working(self, operand: Operand) -> AbstractContextManager[Any]:
        """Within it work is queued behind what made the tensor, on the progress thread's stream."""
        stack = ExitStack()
        if self._ready is not None:
            stream = _progress_stream(self._device)
            stream.wait_event(self._ready)
            stack.enter_context(torch.cuda.stream(stream))
        stack.enter_context(torch.no_grad())
        return stack

    def _wait(self) -> None:
        if self._ready is not None:
            torch.cuda.current_stream(self._device).synchronize()


_streams: dict[torch.device, Any] = {}


def _progress_stream(device: torch.device) -> Any:
    """The progress thread's own stream on ``device``."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]


def _padded(flat: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -flat.numel() % multiple
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


def _abs_sum(values: torch.Tensor) -> torch.Tensor:
    """The absolute sum of whole chunks, each block of 64 added up in the kernels' order."""
    rows = values.abs().reshape(-1, 8, 8)
    lanes = rows[:, 0]
    for row in range(1, 8):
        lanes = lanes + rows[:, row]
    four = lanes[:, :4] + lanes[:, 4:]
    two = four[:, :2] + four[:, 2:]
    return (two[:, 0] + two[:, 1]).double().sum()


def _packed(flags: torch.Tensor) -> torch.Tensor:
    """Booleans as bits of uint8, little-endian, in whole words of 64."""
    bits = _padded(flags.reshape(-1).to(torch.uint8), BLOCK).reshape(-1, 8)
    weights = torch.tensor(_BITS, dtype=torch.uint8, device=bits.device)
    return (bits * weights).sum(1, dtype=torch.uint8)


def _to_host(*tensors: torch.Tensor) -> list[npt.NDArray[Any]]:
    """Copies of tensors, from a GPU through pinned memory with one wait for all of them.

    PyTorch keeps pinned memory that is given back, so that later calls make none.
    """
    if not tensors[0].is_cuda:
        return [tensor.cpu().numpy() for tensor in tensors]
    copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in copies]


def _to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of a host array, to a GPU through pinned memory; ordered on the current stream."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _bits(words: Words, device: torch.device) -> torch.Tensor:
    """Unpacks words on the device, to a flat tensor of 0 and 1."""
    packed = _to_device(words.view(np.uint8), device)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    return ((packed.unsqueeze(1) >> shifts) & 1).reshape(-1)
