"""Checksums of tensors, taken where they live."""

from __future__ import annotations

from collections.abc import Sequence

import torch

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
RUN = 2**18
"""Words that are summed up at a time: few enough to stay in cache."""
PRIME = 1_000_003


def checksums(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Of each dense tensor's bits, in the order of its coordinates, in [0, 2^64); waits once.

    A sum of words, each times an odd number of its own, modulo 2^64: what changes one word, or two
    that trade places, changes it.
    """
    if not tensors:
        return []
    sums = [_checksum(tensor) for tensor in tensors]
    gathered = torch.stack([one.to(sums[0].device) for one in sums])
    return [number % 2**64 for number in gathered.tolist()]


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().resolve_neg().contiguous().reshape(-1)
    words = flat.view(WORDS[8 if flat.is_complex() else flat.element_size()])
    odd = 2 * torch.arange(min(RUN, words.numel()), device=flat.device) + 1
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for run in torch.split(words, RUN):
        total = total * PRIME + (run * odd[: run.numel()]).sum()
    return total
