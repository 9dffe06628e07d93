"""What the bindings' optimizers share that step by votes."""

from __future__ import annotations

import math
from typing import Any, Protocol

from hvd_sign.frontend.arguments import keywords_of, op_of
from hvd_sign.votes import MajorityVote

OPTIONS = ("ties", "seed", "scale")
"""Keywords of votes that these optimizers have; the others are ``DistributedOptimizer``'s."""


class OfSigns(Protocol):
    """An optimizer of signs."""

    def vote_keywords(self) -> dict[str, Any]:
        """By which keywords of ``hvd_sign.VoteOptions`` a vote does what this optimizer does."""
        ...

    def training_keywords(self) -> dict[str, Any]:
        """By which keywords of ``hvd_sign.TrainingOptions``."""
        ...


def check_rate(argument: str, value: Any) -> None:
    """Raises ValueError unless a learning rate or a weight decay is a finite number from 0."""
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{argument}: expected a finite number from 0, got {value!r}")


def op_for(optimizer: OfSigns | None, compression: Any, op: Any, none: Any) -> Any:
    """``op_of`` for an optimizer: one of signs votes where neither argument says anything.

    Args:
        optimizer: None: it is none of signs.
        compression, op, none: of ``op_of``.

    Raises:
        ValueError, TypeError: as ``op_of``.
    """
    op = op_of(compression, op, none)
    unsaid = op is None and compression is none
    return MajorityVote if optimizer is not None and unsaid else op


def keywords_for(
    optimizer: OfSigns | None, compression: Any, none: Any, given: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """``keywords_of`` for an optimizer: one of signs has its own, unless an algorithm is asked for.

    Args:
        optimizer: None: it is none of signs.
        compression: of ``keywords_of``.
        none: the binding's ``Compression.none``.
        given: the user's, which precede the optimizer's.

    Returns:
        A vote's keywords, those of ``hvd_sign.TrainingOptions`` among them, and those that the
        optimizer has of ``VoteOptions``; None: it was not asked.

    Raises:
        ValueError: contradictory ones, or others than the optimizer needs.
    """
    given = keywords_of(compression, given)
    needed = {} if optimizer is None else optimizer.training_keywords()
    if optimizer is None or compression is not none or given.get("algorithm") is not None:
        if needed:
            raise ValueError(
                f"compression, algorithm: {type(optimizer).__name__} has its own, got another one"
            )
        return given, None
    for name, value in needed.items():
        if given.get(name) not in (None, value):
            raise ValueError(
                f"{name}: expected {value}, as of {type(optimizer).__name__}, got {given[name]}"
            )
    own = optimizer.vote_keywords()
    return own | {name: v for name, v in given.items() if v is not None} | needed, own
