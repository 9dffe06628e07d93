"""An algorithm with a hyper-parameter and a state: votes on the gradient's running mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvd_sign.algorithms import Algorithm, Linear


@dataclass(frozen=True)
class Momentum(Algorithm):
    """signal = v = beta v + (1 - beta) g; without a gradient v goes on as with zeros."""

    beta: float = 0.9

    name = "test momentum"
    planes = ("v",)
    absent = "zero"

    def step(self, gradient: Any, state: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        v = self.beta * state["v"] + (1 - self.beta) * gradient
        return v, {"v": v}


@dataclass(frozen=True)
class FusedMomentum(Momentum):
    """The same, computed by the kernels in the pass in which they pack."""

    def linear(self) -> Linear:
        return Linear(self.beta, 1 - self.beta, self.beta, 1 - self.beta)
