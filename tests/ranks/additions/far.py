"""A device: memory that the host reads only by copying, packed and unpacked by numpy there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvd_sign.core.places import CHUNK, Packed, Planes, Words
from hvd_sign.devices import Operand, PlaneDevice

BLOCK = 64


@dataclass
class FarArray:
    """An array on the device."""

    numbers: np.ndarray


class Far(PlaneDevice):
    """Arithmetic is numpy's; flat arrays are numpy's too, as a library of the device's own."""

    def zeros(self, spec: Any, like: FarArray) -> np.ndarray:
        return np.zeros(spec.size, np.float64 if spec.dtype == "float64" else np.float32)

    def to_host(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def from_host(self, numbers: np.ndarray, array: np.ndarray) -> None:
        array[...] = numbers

    def flat(self, tensor: FarArray | np.ndarray) -> np.ndarray:
        numbers = tensor.numbers if isinstance(tensor, FarArray) else tensor
        flat = numbers.reshape(-1)
        return flat if flat.dtype == np.float64 else flat.astype(np.float32)

    def planes(
        self, signal: np.ndarray, kept: Sequence[np.ndarray], *, want_abs: bool
    ) -> tuple[Planes, np.ndarray]:
        finite = np.isfinite(signal)
        for array in kept:
            finite &= np.isfinite(array)
        chunks = -(-signal.size // CHUNK)
        padded = np.ones(chunks * CHUNK, bool)
        padded[: signal.size] = finite
        good = padded.reshape(chunks, CHUNK).all(1)
        sound = np.repeat(good, CHUNK)[: signal.size]
        values = np.where(sound, signal, 0)
        total = float(np.abs(values.astype(np.float64)).sum()) if want_abs else 0.0
        packed = Packed(int((~good).sum()), int(sound.sum()), total)
        return Planes(words(values < 0), words(values == 0), packed), sound

    def keep(self, sound: Any, new: Any, old: Any, into: Any) -> None:
        into[...] = np.where(sound, new, old)

    def unpack(self, out: FarArray | np.ndarray, signs: Words, keep: Words, scale: float) -> None:
        numbers = out.numbers if isinstance(out, FarArray) else out
        negative, kept = bits(signs, numbers.size), bits(keep, numbers.size)
        verdict = np.where(kept, np.where(negative, -scale, scale), 0)
        numbers[...] = verdict.reshape(numbers.shape)

    def read(self, operand: Operand) -> np.ndarray | None:
        return None if operand.signal is None else operand.signal.numbers.astype(np.float32)

    def take(self, operand: Operand, values: np.ndarray) -> None:
        operand.out.numbers[...] = values.reshape(operand.out.numbers.shape) * operand.factor


def words(flags: np.ndarray) -> Words:
    padded = np.zeros(-(-flags.size // BLOCK) * BLOCK, bool)
    padded[: flags.size] = flags
    return np.packbits(padded, bitorder="little").view(np.uint64)


def bits(packed: Words, count: int) -> np.ndarray:
    return np.unpackbits(packed.view(np.uint8), bitorder="little")[:count].astype(bool)
