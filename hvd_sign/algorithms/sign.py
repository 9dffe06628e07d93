"""signSGD: the signal is the gradient itself (Bernstein et al. 2018, arXiv 1802.04434)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvd_sign.algorithms.base import IDENTITY, Algorithm, Linear


@dataclass(frozen=True)
class Sign(Algorithm):
    """Votes on the gradient; keeps nothing."""

    name = "sign"

    def step(self, gradient: Any, state: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The gradient."""
        return gradient, {}

    def linear(self) -> Linear:
        """The gradient."""
        return IDENTITY
