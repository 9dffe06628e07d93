"""One bit a coordinate with error feedback, averaged (Seide et al. 2014, Interspeech).

One scale for all coordinates, as in 1-bit Adam (Tang et al. 2021, arXiv 2102.02888).
"""

from __future__ import annotations

import numpy as np
import torch

import hvd_sign
from benchmarks.methods.baselines.base import Baseline


class OneBitAverage(Baseline):
    """Each coordinate becomes sign(x) mean|x|, the mean over its bucket; sign(0) = +1.

    A message is the mean, float32[1], then the signs packed by hvd_sign, uint8[ceil(d / 8)]. The
    bits are packed on the processor, also where gradients are on a GPU.
    """

    feeds_back = True

    def encode(self, signal: torch.Tensor) -> torch.Tensor:
        bits = torch.from_numpy(hvd_sign.pack_signs(signal.cpu().numpy()))
        scale = signal.abs().mean().reshape(1).view(torch.uint8)
        return torch.cat([scale, bits.to(signal.device)])

    def add(self, message: torch.Tensor, total: torch.Tensor) -> None:
        scale = message[:4].clone().view(torch.float32)
        bits = message[4:].cpu().numpy()
        signs = hvd_sign.unpack_signs(bits, len(total), np.float32)
        total.addcmul_(torch.from_numpy(signs).to(total.device), scale)
