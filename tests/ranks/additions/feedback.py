"""An algorithm with planes of each kind: what was not sent is kept, beside two means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvd_sign.algorithms import Algorithm


@dataclass(frozen=True)
class Feedback(Algorithm):
    """Votes on the gradient, with error feedback; and keeps two running means."""

    name = "test feedback"
    planes = ("fast", "slow")
    feedback = True
    resized = {"slow": "mean"}  # noqa: RUF012, a constant

    def step(self, gradient: Any, state: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        fast = 0.5 * state["fast"] + 0.5 * gradient
        slow = 0.75 * state["slow"] + 0.25 * gradient
        return gradient, {"fast": fast, "slow": slow}
