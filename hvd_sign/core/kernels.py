"""The compiled kernels, checked against this source tree, and typed.

Arrays are taken by DLPack or the buffer protocol, never copied, and must be contiguous and in host
memory. Layout and meaning of the bits stand in ``native/message.h``. Every function releases the
GIL; nothing guards a buffer against two threads. A wrong type raises TypeError, a wrong length,
a gap, a read-only output or an overlap raises ValueError, both naming function and argument.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign._version import __version__

try:
    from hvd_sign import _kernels
except ImportError as error:
    if "HVD_SIGN_KERNELS" in str(error):  # built, but told to run what this machine cannot
        raise
    raise ImportError(
        f"hvd_sign: the compiled kernels cannot be loaded ({error}): build them with "
        "`pip install .` (or `pip install -e .`) in the repository's root"
    ) from error

if _kernels.__version__ != __version__:
    raise ImportError(
        f"hvd_sign: the compiled kernels {_kernels.__file__} are stale: expected version "
        f"{__version__}, as the Python code, got {_kernels.__version__}: build them again with "
        "`pip install .` (or `pip install -e .`) in the repository's root"
    )

from hvd_sign._kernels import (
    ABSTAINED,
    BALLOT,
    BLOCK,
    CHUNK_BLOCKS,
    HEADER_BYTES,
    JOINED,
    MESSAGE_VERSION,
    NONFINITE,
    VERDICT,
    ExactFloats,
    Geometry,
    abstain,
    check,
    coin_key,
    coin_words,
    fetch,
    implementation,
    implementations,
    place,
    seal,
    set_implementation,
    tally,
    tally_means,
    xor_words,
)

__all__ = [
    "ABSTAINED",
    "BALLOT",
    "BLOCK",
    "CHUNK_BLOCKS",
    "HEADER_BYTES",
    "JOINED",
    "MESSAGE_VERSION",
    "NONFINITE",
    "VERDICT",
    "ExactFloats",
    "Geometry",
    "abstain",
    "apply_verdict",
    "as_bits",
    "check",
    "coin_key",
    "coin_words",
    "fetch",
    "implementation",
    "implementations",
    "pack",
    "pack_linear",
    "place",
    "seal",
    "set_implementation",
    "tally",
    "tally_means",
    "trailers",
    "write_verdict",
    "xor_words",
]


def pack(
    signal: Any,
    messages: Any,
    geometry: Geometry,
    first_block: int,
    *,
    ties: int,
    key: int,
    parity: int,
    ordinal: int,
    bfloat16: bool = False,
    want_abs: bool = False,
) -> tuple[int, int, float]:
    """Packs a tensor's signs into a bucket's messages, in one pass.

    Args:
        signal: float32, float64, float16 or bfloat16, any shape.
        messages: uint8[geometry.total_bytes], written.
        geometry: how the bucket lies in the messages.
        first_block: the tensor's first block in the bucket.
        ties: 0 (coin), 1 (zero) or 2 (positive): what a zero in an active block counts as.
        key: of the coins for zeros, from ``coin_key(seed, "zero", step)``.
        parity: odd turns those coins round.
        ordinal: of the tensor; an argument of its coins.
        bfloat16: a uint16 signal holds the bits of bfloat16 numbers.
        want_abs: also sum the absolute values.

    Returns:
        Chunks with NaN or Inf, coordinates in the other chunks, sum of their absolute values (0.0
        without ``want_abs``).

    Raises:
        TypeError, ValueError: an array, or ``first_block``, or ``ties`` does not fit.
    """
    signal, bfloat16 = as_bits(signal, bfloat16)
    return _kernels.pack(
        signal,
        messages,
        geometry,
        first_block,
        ties=ties,
        key=key,
        parity=parity,
        ordinal=ordinal,
        bfloat16=bfloat16,
        want_abs=want_abs,
    )


def pack_linear(
    gradient: Any,
    state: Any,
    next_state: Any,
    messages: Any,
    geometry: Geometry,
    first_block: int,
    *,
    linear: tuple[float, float, float, float],
    unscale: float = 1.0,
    feedback: tuple[Any, Any, Any, Any] | None = None,
    ties: int,
    key: int,
    parity: int,
    ordinal: int,
    bfloat16: bool = False,
    want_abs: bool = False,
) -> tuple[int, int, float]:
    """Packs the signs of ``s = a m + b (u g)`` and makes the state ``m' = c m + d (u g)``.

    All is computed in the state's type, factors and each operation rounded to it. A chunk of 4096
    coordinates with a NaN or an infinity in s or m' abstains, and its state stays as it was.

    Args:
        gradient: g, float32, float64, float16 or bfloat16, any shape; None counts as zeros.
        state: m, as many numbers, float64 beside a float64 gradient, else float32; None: there is
            none, that is, zeros.
        next_state: m', of the state's type and length, written: ``state`` itself, or memory apart.
            None where there is no state.
        messages: uint8[geometry.total_bytes], written.
        geometry: how the bucket lies in the messages.
        first_block: the tensor's first block in the bucket.
        linear: (a, b, c, d); momentum is (beta, 1 - beta, beta, 1 - beta).
        unscale: u, one over the scale that the gradient was multiplied by.
        feedback: (kept, next, sent, next_sent): packs p = s + e instead, where e = p' - sent * cast
            is what the step before left unsaid of its p', ``kept``. cast is the sign bit of p', of
            a zero too, but 0 in a block of zeros alone, and of a zero under ties "zero". ``next``,
            ``kept`` itself or memory apart, becomes p, its zeros signed as they were cast; both
            are of the state's type and length. ``sent``, float32, one a chunk, is the scale;
            ``next_sent``, itself or memory apart, becomes the chunk's scale in chunks that voted,
            or NaN where messages have none, for it is not known yet, and stays in those that
            abstained.
        ties, key, parity, ordinal, bfloat16: as for :func:`pack`.
        want_abs: also sum the absolute values of s.

    Returns:
        Chunks with NaN or Inf, coordinates in the other chunks, sum of their packed absolute
        values (0.0 without ``want_abs``).

    Raises:
        TypeError, ValueError: an array, a factor, ``first_block`` or ``ties`` does not fit.
    """
    gradient, bfloat16 = as_bits(gradient, bfloat16)
    a, b, c, d = linear
    return _kernels.pack_linear(
        gradient,
        state,
        next_state,
        messages,
        geometry,
        first_block,
        a=a,
        b=b,
        c=c,
        d=d,
        unscale=unscale,
        feedback=feedback,
        ties=ties,
        key=key,
        parity=parity,
        ordinal=ordinal,
        bfloat16=bfloat16,
        want_abs=want_abs,
    )


def write_verdict(
    out: Any,
    messages: Any,
    geometry: Geometry,
    first_block: int,
    *,
    scale: float = 1.0,
    bfloat16: bool = False,
) -> None:
    """Writes ``scale * V`` for the verdict V in {-1, 0, +1}.

    Args:
        out: float32, float64, float16 or bfloat16, any shape, written.
        messages: uint8[geometry.total_bytes], the verdicts of all shards.
        geometry: how the bucket lies in the messages.
        first_block: the tensor's first block in the bucket.
        scale: rounded to the type of ``out``.
        bfloat16: a uint16 ``out`` takes the bits of bfloat16 numbers.

    Raises:
        TypeError, ValueError: an array or ``first_block`` does not fit.
    """
    out, bfloat16 = as_bits(out, bfloat16)
    _kernels.write_verdict(out, messages, geometry, first_block, scale=scale, bfloat16=bfloat16)


def apply_verdict(
    p: Any,
    messages: Any,
    geometry: Geometry,
    first_block: int,
    *,
    lr: float,
    bfloat16: bool = False,
) -> None:
    """Subtracts ``lr * V`` from a tensor, for the verdict V in {-1, 0, +1}.

    16-bit tensors are computed in float32 and rounded to nearest, ties to even. Where V is 0 the
    tensor keeps its bits.

    Args:
        p: float32, float64, float16 or bfloat16, any shape, changed in place.
        messages: uint8[geometry.total_bytes], the verdicts of all shards.
        geometry: how the bucket lies in the messages.
        first_block: the tensor's first block in the bucket.
        lr: the step, rounded to the type of the arithmetic.
        bfloat16: a uint16 ``p`` holds the bits of bfloat16 numbers.

    Raises:
        TypeError, ValueError: an array or ``first_block`` does not fit.
    """
    p, bfloat16 = as_bits(p, bfloat16)
    _kernels.apply_verdict(p, messages, geometry, first_block, lr=lr, bfloat16=bfloat16)


def trailers(messages: npt.NDArray[np.uint8], geometry: Geometry) -> npt.NDArray[np.float32]:
    """The floats behind the blocks of messages, where they stand: float32[messages, floats]."""
    start = geometry.trailer_offset
    rows = messages.reshape(-1, geometry.message_bytes)
    return rows[:, start : start + 4 * geometry.trailer_floats].view(np.float32)


def as_bits(array: Any, bfloat16: bool = False) -> tuple[Any, bool]:
    """Numpy's bfloat16 comes from a library and travels by no protocol: its bits do.

    Returns:
        The array, or its bits as uint16; and whether those are what is meant.
    """
    if isinstance(array, np.ndarray) and _is_bfloat16(array.dtype):
        return array.view(np.uint16), True
    return array, bfloat16


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Asks for the name, which numpy takes microseconds to make, of a library's types alone."""
    return dtype.isbuiltin == 2 and dtype.name == "bfloat16"
