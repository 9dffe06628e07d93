"""Small questions that scripts ask."""

from __future__ import annotations

import torch


def gpu_available(ext_base_name: str, verbose: bool = False) -> bool:
    """Whether PyTorch sees a GPU.

    Args:
        ext_base_name: Horovod's name for the framework; without effect.
        verbose: without effect.
    """
    return torch.cuda.is_available()


def num_rank_is_power_2(num_rank: int) -> bool:
    """Whether a number of ranks is a power of two."""
    return num_rank > 0 and num_rank & (num_rank - 1) == 0
