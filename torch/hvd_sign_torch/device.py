"""The one place that asks where a tensor lives.

Host tensors go to the kernels as they are. Tensors on a device are packed there with PyTorch's
own operations, so that only bits cross the bus.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hvd_sign import kernels
from hvd_sign.ballots import ABSTAINED, Cast, Feed, HostVoter, Slot, Voter
from hvd_sign.buckets import BLOCK

CHUNK = 64 * BLOCK
"""Coordinates that abstain together over NaN or Inf."""

_BITS = [1, 2, 4, 8, 16, 32, 64, 128]


def dtype_name(tensor: torch.Tensor) -> str:
    """The element type's name, such as ``"float32"``."""
    return str(tensor.dtype).removeprefix("torch.")


def make_voter(signal: torch.Tensor | None, out: torch.Tensor, factor: float = 1.0) -> Voter:
    """The voter for a tensor, wherever it lives.

    Args:
        signal: what is voted on, dense; None to abstain.
        out: takes the verdict; may be ``signal``.
        factor: multiplies the verdict.
    """
    if signal is not None:
        signal = signal.resolve_neg()  # which PyTorch puts off, and memory knows nothing of
    if out.device.type == "cpu":
        return TorchHostVoter(signal, out, factor)
    return DeviceVoter(signal, out, factor)


class TorchHostVoter(HostVoter):
    """A tensor in host memory, of any strides."""

    def __init__(self, signal: torch.Tensor | None, out: torch.Tensor, factor: float = 1.0) -> None:
        super().__init__(None if signal is None else signal.contiguous(), out, factor)

    def feed(self) -> Feed | None:
        """The tensors; without ``out`` if it needs a copy."""
        return Feed(self.signal, self.out if self._plain else None, self.factor)

    def obey(self, slot: Slot, scale: float) -> None:
        """Writes the verdict, through a contiguous copy if it needs one."""
        if self._plain:
            slot.write(self.out, scale * self.factor)
        else:
            dense = torch.empty(self.out.shape, dtype=self.out.dtype)
            slot.write(dense, scale * self.factor)
            _fill(self.out, dense)

    @property
    def _plain(self) -> bool:
        """Whether the memory of ``out`` holds its numbers, one after another."""
        return bool(self.out.is_contiguous()) and not self.out.is_neg()

    def read(self) -> npt.NDArray[np.float32] | None:
        """The signal in fp32, which host fp32 is already."""
        return None if self.signal is None else _numbers(self.signal)

    def take(self, values: npt.NDArray[np.float32]) -> None:
        """Writes numbers in the place of a verdict."""
        _fill(self.out, torch.from_numpy(values).reshape(self.out.shape) * self.factor)


class DeviceVoter:
    """A tensor packed and unpacked with PyTorch's operations, on whatever device it lives.

    Work queued on the caller's stream is waited for by event; the progress thread works on a
    stream of its own and never synchronises the whole device.
    """

    def __init__(self, signal: torch.Tensor | None, out: torch.Tensor, factor: float = 1.0) -> None:
        self._signal = signal
        self._out = out
        self._factor = factor
        self._ready: Any = None
        if out.is_cuda:
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record(torch.cuda.current_stream(out.device))

    def feed(self) -> Feed | None:
        """Nothing that the host could read."""
        return None

    def cast(self, slot: Slot) -> Cast:
        """Packs on the device, finishes zeros and coins on the host."""
        if self._signal is None:
            slot.abstain()
            return ABSTAINED
        if self._signal.numel() == 0:
            return ABSTAINED
        with self._stream(), torch.no_grad():
            values = _padded(self._signal.reshape(-1), CHUNK).reshape(-1, CHUNK)
            sound = torch.isfinite(values).all(1, keepdim=True)
            values = torch.where(sound, values, 0)
            zeros = values == 0
            active = (~zeros).reshape(-1, BLOCK).any(1)
            lengths = torch.full((sound.numel(),), CHUNK, device=sound.device)
            lengths[-1] -= values.numel() - self._signal.numel()
            # Numbers that fp64 holds exactly, and a sum that is taken in it.
            seen = torch.zeros(3, dtype=torch.float64, device=sound.device)
            seen[0] = (~sound).sum()
            seen[1] = (lengths * sound.reshape(-1)).sum()
            if slot.box.scaled:
                seen[2] = values.abs().double().sum()
            packed = _packed(values < 0), _packed(zeros), _packed(active)
            signs, zero, live, numbers = _to_host(*packed, seen)
        self._place(slot, *(words.view(np.uint64) for words in (signs, zero, live)))
        bad, finite, total = numbers.tolist()
        return Cast(int(bad), int(finite), total)

    def obey(self, slot: Slot, scale: float) -> None:
        """Takes the verdict's bits to the device and unpacks them there."""
        blocks = slot.spec.blocks
        if blocks == 0:
            return
        signs = np.zeros(blocks, np.uint64)
        active = np.zeros(-(-blocks // BLOCK), np.uint64)
        nonzero = np.zeros(blocks, np.uint64) if slot.box.geometry.nonzero else None
        kernels.fetch(
            slot.box.verdicts, slot.box.geometry, slot.first_block, signs, active, nonzero
        )
        with self._stream(), torch.no_grad():
            verdict = 1 - 2 * _bits(signs, self._out.device).to(torch.int8)
            alive = _bits(active, self._out.device)[:blocks]
            verdict = verdict.reshape(-1, BLOCK) * alive.unsqueeze(1)
            if nonzero is not None:
                verdict = verdict * _bits(nonzero, self._out.device).reshape(-1, BLOCK)
            flat = verdict.reshape(-1)[: self._out.numel()].to(self._out.dtype)
            most = torch.finfo(flat.dtype).max
            factor = max(-most, min(scale * self._factor, most))  # never an infinity
            _fill(self._out, (flat * factor).reshape(self._out.shape))
            if self._out.is_cuda:
                torch.cuda.current_stream(self._out.device).synchronize()

    def read(self) -> npt.NDArray[np.float32] | None:
        """The signal in fp32, brought to the host."""
        if self._signal is None:
            return None
        with self._stream(), torch.no_grad():
            return _numbers(self._signal)

    def take(self, values: npt.NDArray[np.float32]) -> None:
        """Takes numbers in the place of a verdict to the device."""
        with self._stream(), torch.no_grad():
            numbers = _to_device(values, self._out.device) * self._factor
            _fill(self._out, numbers.reshape(self._out.shape))
            if self._out.is_cuda:
                torch.cuda.current_stream(self._out.device).synchronize()

    def _place(
        self,
        slot: Slot,
        signs: npt.NDArray[np.uint64],
        zeros: npt.NDArray[np.uint64],
        active: npt.NDArray[np.uint64],
    ) -> None:
        """Lets coins decide zeros of active blocks, then puts the words into the messages."""
        box, blocks = slot.box, slot.spec.blocks
        everyone = np.uint64(2**64 - 1)
        alive = np.unpackbits(active.view(np.uint8), bitorder="little")[:blocks].astype(bool)
        tail = slot.spec.size % BLOCK
        exists = np.full(blocks, everyone)
        if tail:
            exists[-1] = np.uint64(2**tail - 1)
        zeros = np.where(alive, zeros[:blocks] & exists, np.uint64(0))
        signs = signs[:blocks].copy()
        nonzero = None
        if box.options.ties == "coin" and zeros.any():
            coins = np.zeros(blocks, np.uint64)
            kernels.coin_words(box.zero_key, slot.spec.ordinal, 0, coins)
            signs |= zeros & (coins ^ everyone if box.parity else coins)
        elif box.options.ties == "zero":
            nonzero = np.where(alive, ~zeros & exists, np.uint64(0))
        words = -(-blocks // BLOCK)
        kernels.place(signs, active[:words], nonzero, box.ballots, box.geometry, slot.first_block)

    def _stream(self) -> AbstractContextManager[Any]:
        if self._ready is None:
            return nullcontext()
        stream = _progress_stream(self._out.device)
        stream.wait_event(self._ready)
        return torch.cuda.stream(stream)


_streams: dict[torch.device, Any] = {}


def _progress_stream(device: torch.device) -> Any:
    """The progress thread's own stream on ``device``."""
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]


def _fill(out: torch.Tensor, values: torch.Tensor) -> None:
    """Overwrites a tensor; one of inference mode only lets itself be changed in that mode."""
    with torch.inference_mode(out.is_inference()):
        out.copy_(values)


def _numbers(signal: torch.Tensor) -> npt.NDArray[np.float32]:
    (numbers,) = _to_host(signal.reshape(-1).float())
    return numbers


def _padded(flat: torch.Tensor, multiple: int) -> torch.Tensor:
    missing = -flat.numel() % multiple
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


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


def _bits(words: npt.NDArray[np.uint64], device: torch.device) -> torch.Tensor:
    """Unpacks words on the device, to a flat tensor of 0 and 1."""
    packed = _to_device(words.view(np.uint8), device)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    return ((packed.unsqueeze(1) >> shifts) & 1).reshape(-1)
