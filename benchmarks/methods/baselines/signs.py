"""Signs as bytes: the majority vote as GRACE exchanges it (Xu et al. 2021, ICDCS).

signSGD with majority vote is Bernstein et al. 2018, arXiv 1802.04434.
"""

from __future__ import annotations

import torch

from benchmarks.methods.baselines.base import Baseline


class SignBytes(Baseline):
    """Each coordinate becomes sign(sum of signs), int8[d] a message; 0 for a zero and for a tie."""

    def encode(self, signal: torch.Tensor) -> torch.Tensor:
        return signal.sign().to(torch.int8).view(torch.uint8)

    def add(self, message: torch.Tensor, total: torch.Tensor) -> None:
        total += message.view(torch.int8)

    def combine(self, total: torch.Tensor, workers: int) -> torch.Tensor:
        return total.sign_()
