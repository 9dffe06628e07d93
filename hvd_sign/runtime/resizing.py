"""What becomes of ranks' own arrays when the number of ranks changes.

By an algorithm's ``resized``, plane by plane. The sign of the ranks' median is what a majority of
them would vote: where every rank goes on from it the vote goes on in its direction, and one rank's
array, however large, moves it no further than to its neighbours' (the middle of an even number's
middle two). A sum is kept where arrays hold what is yet to be sent, as error feedback's residuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import RESIDUAL, VERDICT_RESIDUAL, Algorithm

Array = npt.NDArray[Any]


def rule_of(algorithm: Algorithm, plane: str) -> str:
    """One of ``RESIZED``; or "owned", for what each rank has a part of, beside zeros."""
    if plane == VERDICT_RESIDUAL:
        return "owned"
    return algorithm.resized.get(plane, "sum" if plane == RESIDUAL else "median")


def resized(rule: str, arrays: Sequence[Array], ranks: int) -> Array:
    """The array of each of the new ranks, which are alike.

    Args:
        rule: of ``rule_of()``.
        arrays: of all old ranks, of one size, fp32 or fp64.
        ranks: how many there are now.

    Returns:
        Of the same size and type; computed in fp64.
    """
    stack = np.stack(arrays).astype(np.float64)
    if rule == "owned":
        made = np.take_along_axis(stack, np.abs(stack).argmax(axis=0)[None], axis=0)[0]
    elif rule == "sum":
        made = stack.sum(axis=0) / ranks
    else:
        made = stack.mean(axis=0) if rule == "mean" else np.median(stack, axis=0)
    fitted: Array = made.astype(arrays[0].dtype)
    return fitted


def joining(rule: str, arrays: Sequence[Array]) -> Array:
    """The array of a rank that joins others, who keep theirs: zeros beside a sum, or their own.

    Args:
        rule: of ``rule_of()``.
        arrays: of the ranks that were there before.
    """
    return np.zeros_like(arrays[0]) if rule in ("sum", "owned") else resized(rule, arrays, 1)
