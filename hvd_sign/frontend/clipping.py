"""Gradients clipped on each rank, before ranks exchange them: what bindings share, and numpy's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.core import kernels
from hvd_sign.devices.host import state_type

NEARLY_NOTHING = 1e-6
"""What PyTorch adds to a norm that it divides by."""
RUN = 2**16
"""Coordinates whose squares are added up at a time: few enough to stay in cache."""

Array = npt.NDArray[Any]


def shrinking(norms: Iterable[float], bound: float) -> float:
    """What gradients are multiplied by so that the norm of all is at most a bound; at most 1.

    Args:
        norms: of each gradient's finite coordinates.
        bound: as large as they are scaled.
    """
    total = sum(norm * norm for norm in norms)
    return min(1.0, bound / (float(total**0.5) + NEARLY_NOTHING))


def norm_of(gradient: Array) -> float:
    """The 2-norm of an array's finite coordinates, in fp64."""
    flat, total = gradient.reshape(-1), 0.0
    with kernels.ExactFloats(), np.errstate(all="ignore"):
        for start in range(0, flat.size, RUN):
            run = flat[start : start + RUN].astype(np.float64)
            square = float(run @ run)
            if not np.isfinite(square):
                run = np.where(np.isfinite(run), run, 0)
                square = float(run @ run)
            total += square
    return float(np.sqrt(total))


def clip_values(gradient: Array, bound: float, out: Array) -> None:
    """Clips coordinates to +-``bound``, but for what is not finite, which is looked for later.

    Args:
        gradient: any floating type.
        bound: rounded to that type.
        out: of the gradient's shape and type; takes what comes of it.
    """
    with kernels.ExactFloats(), np.errstate(all="ignore"):
        limit = gradient.dtype.type(bound)
        strange = ~np.isfinite(gradient)
        kept = gradient[strange]
        np.minimum(np.maximum(gradient, -limit), limit, out=out)
        out[strange] = kept


def multiply(gradient: Array, factor: float, out: Array) -> None:
    """Multiplies by a factor in fp32, or in fp64 for fp64.

    Args:
        gradient, out: see ``clip_values``; they may be one array.
        factor: of all coordinates.
    """
    with kernels.ExactFloats(), np.errstate(all="ignore"):
        kind = state_type(gradient.dtype.name)
        wide = gradient.astype(kind, copy=False)
        np.multiply(wide, kind(factor), out=out, casting="unsafe")
