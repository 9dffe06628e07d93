"""Gradients clipped on each rank, before ranks exchange them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from hvd_sign.frontend.clipping import shrinking


def clip_values(gradient: torch.Tensor, bound: float) -> None:
    """Clips coordinates to +-``bound``, but for what is not finite, which is looked for later."""
    clipped = gradient.clamp(-bound, bound)
    gradient.copy_(torch.where(gradient.isfinite(), clipped, gradient))


def norm_factor(gradients: Iterable[torch.Tensor], bound: float) -> float:
    """What gradients are multiplied by so that their norm is at most ``bound``; at most 1.

    The norm is that of all their finite coordinates, in fp64. Waits for the device.

    Args:
        gradients: all of a rank's, dense or sparse.
        bound: as large as they are scaled.
    """
    return shrinking(map(_norm, gradients), bound)


def _norm(gradient: torch.Tensor) -> float:
    numbers = gradient.detach()
    numbers = numbers.coalesce().values() if numbers.is_sparse else numbers
    norm = float(torch.linalg.vector_norm(numbers, dtype=torch.float64))
    if norm - norm != 0:  # not finite
        numbers = torch.where(numbers.isfinite(), numbers, 0)
        norm = float(torch.linalg.vector_norm(numbers, dtype=torch.float64))
    return norm
