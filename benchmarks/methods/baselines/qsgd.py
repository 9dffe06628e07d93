"""QSGD: random rounding to a few levels (Alistarh et al. 2017, arXiv 1610.02132)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.methods.baselines.base import Baseline
from benchmarks.methods.payloads import QSGD_BLOCK

LEVELS = 127  # what one signed byte holds


class QSGD(Baseline):
    """Each coordinate of a block of 512 becomes ||block||_2 sign(x) l / 127, l an integer.

    l is |x| / ||block||_2 x 127 rounded up or down at random, so that its mean is exact (section
    3.1 with s = 127; the blocks are the buckets of its section 4). A message is an fp32 norm of
    each block, then a signed byte a coordinate, without the paper's Elias coding.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._random: torch.Generator | None = None

    def encode(self, signal: torch.Tensor) -> torch.Tensor:
        blocks = _blocks(signal)
        norms = blocks.norm(dim=1, keepdim=True)
        exact = blocks * (LEVELS / norms.where(norms > 0, 1))
        # floor(x + u) is x rounded at random, its mean exact for either sign of x.
        exact += torch.rand(exact.shape, generator=self._generator(signal), device=signal.device)
        levels = exact.floor_().clamp_(-LEVELS, LEVELS).to(torch.int8)
        return torch.cat(
            [norms.view(torch.uint8).flatten(), levels.flatten()[: len(signal)].view(torch.uint8)]
        )

    def add(self, message: torch.Tensor, total: torch.Tensor) -> None:
        norms = message[: len(message) - len(total)].clone().view(torch.float32)
        levels = message[len(message) - len(total) :].view(torch.int8)
        values = _blocks(levels.float()).mul_(norms.div_(LEVELS).unsqueeze(1))
        total += values.flatten()[: len(total)]

    def _generator(self, signal: torch.Tensor) -> torch.Generator:
        if self._random is None:
            rank = dist.get_rank() if dist.is_initialized() else 0
            self._random = torch.Generator(signal.device).manual_seed(self.seed + rank)
        return self._random


def _blocks(values: torch.Tensor) -> torch.Tensor:
    """[d] -> [blocks, 512], with zeros behind."""
    return F.pad(values, (0, -len(values) % QSGD_BLOCK)).view(-1, QSGD_BLOCK)
