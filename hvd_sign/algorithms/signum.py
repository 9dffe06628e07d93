"""Signum: signSGD with momentum (Bernstein et al. 2019, arXiv 1810.05291, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvd_sign.algorithms.base import Algorithm, Linear, coefficient


@dataclass(frozen=True)
class Signum(Algorithm):
    """Votes on each rank's momentum: v = beta v + (1 - beta) g.

    A tensor without a gradient on a rank leaves its momentum as it is, and the rank abstains.

    Attributes:
        beta: in [0, 1).

    Raises:
        ValueError: ``beta`` is outside of that.
    """

    beta: float = 0.9

    name = "signum"
    planes = ("momentum",)

    def __post_init__(self) -> None:
        """Checks beta."""
        coefficient(self, "beta", self.beta)

    def step(self, gradient: Any, state: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The momentum, which is kept."""
        momentum = self.beta * state["momentum"] + (1 - self.beta) * gradient
        return momentum, {"momentum": momentum}

    def linear(self) -> Linear:
        """The momentum."""
        return Linear(self.beta, 1 - self.beta, self.beta, 1 - self.beta)
