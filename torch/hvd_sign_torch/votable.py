"""Which tensors a single vote can take; asked before any rank is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from hvd_sign.core.buckets import check_dtype
from hvd_sign.errors import TensorError
from hvd_sign_torch.devices import dtype_name


def check_votable(who: str, tensor: Any, *, in_place: bool) -> None:
    """Checks what is voted on.

    Args:
        who: begins the sentence.
        tensor: dense, with numbers, fp32, fp64, fp16 or bf16.
        in_place: the verdict takes its place, so that each coordinate needs memory of its own.

    Raises:
        TensorError: it is something else.
        ValueError: the verdict has no room in it.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TensorError(f"{who}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        found = "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise TensorError(f"{who}: a vote needs a dense tensor, got {found}")
    if tensor.is_meta:
        raise TensorError(f"{who}: a vote needs a tensor with numbers, got one on device 'meta'")
    check_dtype(who, dtype_name(tensor))
    if in_place and _overlaps_itself(tensor):
        raise ValueError(
            f"{who}: a vote in place needs memory of its own for each coordinate, got shape "
            f"{tuple(tensor.shape)} with strides {tensor.stride()}; give it a clone()"
        )


def check_apart(labels: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
    """Raises ValueError where contiguous tensors, voted on in place together, share memory."""
    spans = sorted(
        (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), label)
        for label, t in zip(labels, tensors, strict=True)
        if t.numel() and t.is_contiguous()
    )
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end:
            raise ValueError(
                f"tensors: votes in place need memory of their own, but {one!r} and {other!r} share"
                " some"
            )


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether coordinates may share memory: a stride does not reach past the smaller ones."""
    reach = 0
    strides = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted(pair for pair in strides if pair[1] != 1):
        if stride <= reach:
            return tensor.numel() > 0
        reach += stride * (size - 1)
    return False
