"""The plain numpy face of the kernels: pack signs, unpack them, take a vote."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.core import kernels
from hvd_sign.core.options import TIES, choose

_POSITIVE = TIES.index("positive")
_FLOATS = ("float32", "float64", "float16", "bfloat16")


def pack_signs(x: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Packs signs, 1 bit each: coordinate i is bit i % 8 of byte i // 8, 1 = negative.

    Zero, of either sign, is positive; bits past the end are 0.

    Args:
        x: float32, float64, float16 or bfloat16, any shape, of d coordinates.

    Returns:
        uint8[ceil(d / 8)].

    Raises:
        TypeError: x is of another type.
        ValueError: x holds NaN or Inf.

    >>> pack_signs(np.array([1.0, -2.0, 0.0, -0.5], np.float32))
    array([10], dtype=uint8)
    """
    array = np.ascontiguousarray(x)
    _check_float("pack_signs: x", array.dtype)
    geometry = kernels.Geometry(_blocks(array.size), 1)
    message = np.zeros(geometry.total_bytes, np.uint8)
    nonfinite, _, _ = kernels.pack(
        array, message, geometry, 0, ties=_POSITIVE, key=0, parity=0, ordinal=0
    )
    if nonfinite:
        raise ValueError(
            "pack_signs: x: expected finite numbers, got NaN or Inf, which has no vote"
        )
    start = geometry.signs_offset
    return message[start : start + _bytes(array.size)].copy()


def unpack_signs(
    bits: npt.NDArray[np.uint8], d: int, dtype: npt.DTypeLike = np.float32, *, scale: float = 1.0
) -> npt.NDArray[Any]:
    """Unpacks signs to -1 and +1, times a scale.

    Args:
        bits: uint8[ceil(d / 8)], as ``pack_signs()`` returns them.
        d: number of coordinates.
        dtype: float32, float64, float16 or bfloat16.
        scale: rounded to that.

    Returns:
        dtype[d].

    Raises:
        TypeError: ``bits`` or ``dtype`` is of another type.
        ValueError: ``bits`` has another shape.
    """
    _check_float("unpack_signs: dtype", np.dtype(dtype))
    _check_bits("unpack_signs: bits", bits, (_bytes(d),))
    geometry = kernels.Geometry(_blocks(d), 1)
    message = np.zeros(geometry.total_bytes, np.uint8)
    _fill(message, geometry, bits)
    out = np.empty(d, dtype)
    kernels.write_verdict(out, message, geometry, 0, scale=scale)
    return out


def majority_vote(
    ballots: npt.NDArray[np.uint8], d: int, *, ties: str = "coin", seed: int = 0, step: int = 0
) -> npt.NDArray[np.int8]:
    """Decides V = sign(sum of signs) for packed ballots.

    Args:
        ballots: uint8[M, ceil(d / 8)], one ballot a row, as ``pack_signs()`` returns them; bits
            past the end are ignored.
        d: number of coordinates.
        ties: "coin" (by ``seed``, ``step`` and the coordinate), "zero" or "positive".
        seed: of the coins.
        step: of the coins.

    Returns:
        int8[d] in {-1, 0, +1}; 0 only under ``ties="zero"``.

    Raises:
        TypeError: ``ballots`` is of another type.
        ValueError: ``ballots`` has another shape, or ``ties`` is unknown.

    >>> majority_vote(np.array([[0b011], [0b001], [0b101]], np.uint8), 3)
    array([-1,  1,  1], dtype=int8)
    """
    choose("majority_vote: ties", ties, TIES)
    voters = ballots.shape[0] if isinstance(ballots, np.ndarray) and ballots.ndim == 2 else 1
    _check_bits("majority_vote: ballots", ballots, (max(1, voters), _bytes(d)))
    geometry = kernels.Geometry(_blocks(d), 1, ties == "zero")
    messages = np.zeros((voters, geometry.message_bytes), np.uint8)
    for message, ballot in zip(messages, ballots, strict=True):
        _fill(message, geometry, ballot)
        if ties == "zero":
            _set_ones(message, geometry.nonzero_offset, d)
    verdict = np.zeros(geometry.message_bytes, np.uint8)
    kernels.tally(
        messages.reshape(-1),
        geometry,
        verdict,
        shard=0,
        ties=TIES.index(ties),
        key=kernels.coin_key(seed, "tie", step),
        first_blocks=np.zeros(1, np.int64),
        ordinals=np.zeros(1, np.uint64),
    )
    votes = 1 - 2 * _bits(verdict, geometry.signs_offset, d)
    if ties == "zero":
        votes *= _bits(verdict, geometry.nonzero_offset, d)
    return votes


def _bytes(d: int) -> int:
    return -(-d // 8)


def _blocks(d: int) -> int:
    return -(-d // kernels.BLOCK)


def _check_float(who: str, dtype: np.dtype[Any]) -> None:
    if dtype.name not in _FLOATS:
        raise TypeError(f"{who}: expected one of {', '.join(_FLOATS)}, got {dtype.name}")


def _check_bits(who: str, bits: Any, shape: tuple[int, ...]) -> None:
    expected = f"{who}: expected uint8{list(shape)}"
    if not isinstance(bits, np.ndarray) or bits.dtype != np.uint8:
        got = getattr(bits, "dtype", type(bits).__name__)
        raise TypeError(f"{expected}, got {got}")
    if bits.shape != shape:
        raise ValueError(f"{expected}, got uint8{list(bits.shape)}")


def _fill(
    message: npt.NDArray[np.uint8], geometry: kernels.Geometry, bits: npt.NDArray[np.uint8]
) -> None:
    """Copies a ballot in, active in all its blocks."""
    message[geometry.signs_offset :][: bits.size] = bits
    _set_ones(message, geometry.active_offset, geometry.blocks)


def _set_ones(message: npt.NDArray[np.uint8], offset: int, bits: int) -> None:
    message[offset:][: bits // 8] = 255
    if bits % 8:
        message[offset + bits // 8] = (1 << bits % 8) - 1


def _bits(message: npt.NDArray[np.uint8], offset: int, d: int) -> npt.NDArray[np.int8]:
    plane = message[offset:][: _bytes(d)]
    return np.unpackbits(plane, count=d, bitorder="little").view(np.int8)
