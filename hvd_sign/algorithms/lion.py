"""Lion by vote (Chen et al. 2023, arXiv 2302.06675; Liu et al. 2024, arXiv 2404.00438)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvd_sign.algorithms.base import Algorithm, Linear, coefficient


@dataclass(frozen=True)
class Lion(Algorithm):
    """Votes on beta1 m + (1 - beta1) g; then m = beta2 m + (1 - beta2) g.

    A tensor without a gradient on a rank leaves m as it is, and the rank abstains.

    Attributes:
        beta1: in [0, 1).
        beta2: in [0, 1).

    Raises:
        ValueError: one of them is outside of that.
    """

    beta1: float = 0.9
    beta2: float = 0.99

    name = "lion"
    planes = ("momentum",)

    def __post_init__(self) -> None:
        """Checks both."""
        coefficient(self, "beta1", self.beta1)
        coefficient(self, "beta2", self.beta2)

    def step(self, gradient: Any, state: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What is voted on, and the momentum, which is kept."""
        momentum = state["momentum"]
        signal = self.beta1 * momentum + (1 - self.beta1) * gradient
        return signal, {"momentum": self.beta2 * momentum + (1 - self.beta2) * gradient}

    def linear(self) -> Linear:
        """Both."""
        return Linear(self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2)
