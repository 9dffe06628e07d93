"""The largest coordinates alone, the rest kept for later (Aji and Heafield 2017, arXiv 1704.05021).

That it converges as SGD does is shown by Stich et al. 2018, arXiv 1809.07599.
"""

from __future__ import annotations

import torch

from benchmarks.methods.baselines.base import Baseline
from benchmarks.methods.payloads import top_count


class TopK(Baseline):
    """Sends the one in a hundred coordinates of a bucket that are largest in magnitude.

    A message is their positions, int32[k], then their values, float32[k].
    """

    feeds_back = True

    def encode(self, signal: torch.Tensor) -> torch.Tensor:
        rows = signal.abs().topk(top_count(len(signal)), sorted=False).indices
        return torch.cat([rows.int().view(torch.uint8), signal[rows].view(torch.uint8)])

    def add(self, message: torch.Tensor, total: torch.Tensor) -> None:
        rows, values = message.view(2, -1)
        total.index_add_(0, rows.view(torch.int32), values.view(torch.float32))
