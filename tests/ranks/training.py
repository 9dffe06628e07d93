"""A model, its batches, and what momentum and votes have to be of each rank's own gradients."""

from __future__ import annotations

import numpy as np
import torch
from helpers import plain, values
from reference import verdict
from torch import nn

LR = 2.0**-6
COEFFICIENTS = {"Signum": (0.9, 0.9), "Lion": (0.9, 0.99)}


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 70), nn.Tanh(), nn.Linear(70, 3)
    )


def batch(rank: int, turn: int) -> torch.Tensor:
    return values(100 * rank + turn, 16, 12)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - x[:, :3].sin()).square().mean()


def wrap(hvd, kind: str, model: nn.Module, **options):
    optimizer = getattr(hvd, kind)(model.parameters(), lr=LR, ties="zero")
    return hvd.DistributedOptimizer(optimizer, model.named_parameters(), **options)


class Momenta:
    """Every rank's momentum, from gradients that ranks gather."""

    def __init__(self, world, kind: str, params: list) -> None:
        self.world = world
        self.coefficients = COEFFICIENTS[kind]
        self.kept = [[np.zeros(p.shape, np.float32) for p in params] for _ in range(world.size)]

    def verdicts(self, given: list) -> list:
        """The votes on this step's gradients of this rank and the others. Collective."""
        everyones = self.world.allgather([plain(g).astype(np.float32) for g in given])
        return self.verdicts_of(dict(enumerate(everyones)))

    def verdicts_of(self, everyones: dict[int, list]) -> list:
        """The votes on some ranks' gradients; the others have joined."""
        b1, b2 = map(np.float32, self.coefficients)
        c1, c2 = (np.float32(1 - b) for b in self.coefficients)
        signals = []
        for rank, theirs in everyones.items():
            signals.append([b1 * m + c1 * g for m, g in zip(self.kept[rank], theirs, strict=True)])
            self.kept[rank] = [
                b2 * m + c2 * g for m, g in zip(self.kept[rank], theirs, strict=True)
            ]
        return [verdict(list(column), "zero") for column in zip(*signals, strict=True)]


def check(params: list, wanted: list) -> None:
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))
