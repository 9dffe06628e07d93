"""signSGD with error feedback (Karimireddy et al. 2019, arXiv 1901.09847)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvd_sign.algorithms.base import IDENTITY, Algorithm, Linear, coefficient


@dataclass(frozen=True)
class EfSign(Algorithm):
    """Votes on p = g + e, and keeps what its ballot did not say: e = p - mean |p| sign(p).

    A tensor without a gradient on a rank leaves e as it is, and the rank abstains.

    Attributes:
        beta: in [0, 1); above 0 a momentum v = beta v + (1 - beta) g comes in the place of g.

    Raises:
        ValueError: ``beta`` is outside of that.
    """

    beta: float = 0.0

    name = "ef_sign"
    feedback = True

    def __post_init__(self) -> None:
        """Checks beta."""
        coefficient(self, "beta", self.beta)

    @property
    def planes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The momentum, if there is one."""
        return ("momentum",) if self.beta else ()

    def step(self, gradient: Any, state: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The gradient, or the momentum, which is kept."""
        if not self.beta:
            return gradient, {}
        momentum = self.beta * state["momentum"] + (1 - self.beta) * gradient
        return momentum, {"momentum": momentum}

    def linear(self) -> Linear:
        """The same."""
        if not self.beta:
            return IDENTITY
        return Linear(self.beta, 1 - self.beta, self.beta, 1 - self.beta)
