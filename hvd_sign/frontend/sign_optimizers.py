"""What the bindings' ``SignSGD``, ``Signum`` and ``Lion`` share."""

from __future__ import annotations

import math
from typing import Any

OPTIONS = ("ties", "seed", "scale")
"""Keywords of votes that these optimizers have; the others are ``DistributedOptimizer``'s."""


def check_rate(argument: str, value: Any) -> None:
    """Raises ValueError unless a learning rate or a weight decay is a finite number from 0."""
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{argument}: expected a finite number from 0, got {value!r}")
