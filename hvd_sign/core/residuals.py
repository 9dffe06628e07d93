"""What error feedback keeps, told apart from how the kernels keep it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.core import kernels
from hvd_sign.core.buckets import BLOCK
from hvd_sign.core.places import CHUNK


def unsaid(
    kept: npt.NDArray[Any], sent: npt.NDArray[np.float32], *, exact: bool
) -> npt.NDArray[Any]:
    """The residual e = p - sent * cast, as ``kernels.pack_linear`` forms it.

    Args:
        kept: p, flat, fp32 or fp64; zeros have the signs that were cast for them.
        sent: the scale with which each chunk of 4096 was sent.
        exact: no zero was voted on, as under ``ties="zero"``; else a block of zeros alone was not.
    """
    silent = kept == 0
    if not exact:
        says = np.zeros(-(-kept.size // BLOCK) * BLOCK, bool)
        says[: kept.size] = ~silent
        silent &= ~np.repeat(says.reshape(-1, BLOCK).any(1), BLOCK)[: kept.size]
    scale = np.repeat(sent.astype(kept.dtype), CHUNK)[: kept.size]
    with kernels.ExactFloats():
        residual: npt.NDArray[Any] = kept - np.where(
            silent, kept.dtype.type(0), np.copysign(scale, kept)
        )
    return residual
