"""What a user may choose of a vote, checked where it is said."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

TIES = ("coin", "zero", "positive")
SCALES = ("none", "mean_abs")
NONFINITE = ("abstain", "skip")
LOCAL = ("vote", "mean")
AUTO = "auto"
"""Of exchanges: per bucket the cheapest, by the cost model."""
ALLREDUCE = "allreduce"
"""The only fallback."""


def choose(argument: str, value: object, known: tuple[str, ...]) -> str:
    """Returns ``value`` if it is one of ``known``.

    Raises:
        ValueError: names the argument, the known values and what came.
    """
    if isinstance(value, str) and value in known:
        return value
    names = ", ".join(repr(name) for name in known)
    raise ValueError(f"{argument}: expected one of {names}, got {value!r}")


def positive_factor(argument: str, value: float) -> float:
    """Returns ``value`` if it is a finite number above zero.

    Raises:
        ValueError: names the argument and what came.
    """
    if isinstance(value, (int, float)) and math.isfinite(value) and value > 0:
        return float(value)
    raise ValueError(f"{argument}: expected a finite number above zero, got {value!r}")


@dataclass(frozen=True)
class VoteOptions:
    """The keywords of a vote, by which optimizers, tapes and ``allreduce`` take them.

    They are the same on all ranks; None takes the default.

    Attributes:
        ties: what decides zeros and ties: ``"coin"`` (default; a counter-based coin, equal on all
            ranks), ``"zero"`` (exact, a second bit each way) or ``"positive"``. What is zero on all
            ranks stays where it is in blocks of 64 coordinates that are zero as a whole, counted
            from the tensor's start; elsewhere, as in an embedding's ``padding_idx`` row whose width
            is no multiple of 64, only under ``"zero"``.
        exchange: how ballots travel: ``"sharded"`` (default), ``"allgather"``, ``"hierarchical"``
            (one vote a node), or ``"auto"``: for each bucket the cheapest by what
            ``hvd-sign bench-link`` measured. Without that, an optimizer's votes take one or two
            seconds to measure it before the first one, and single votes assume 1 Gbit/s.
        seed: of the coins, an integer; default 0.
        scale: ``"none"`` (default) leaves the verdict at +-1; ``"mean_abs"`` multiplies each
            tensor's by the median of the voters' mean absolute signals, so that a schedule made for
            SGD still fits. Of an even number it is the lower middle one: no rank alone can move it
            far. Who has no number but zeros, or none that is finite, is left out; a node is one
            voter where the exchange is hierarchical, by the median of its ranks. Algorithms with
            error feedback, such as ``"ef_sign"``, need it, and have it as their default.
        nonfinite: what NaN or Inf does on a rank: ``"abstain"`` (default) in that chunk of 4096
            coordinates, or ``"skip"`` the step on all ranks, which only an optimizer's votes can.
        local: what makes a node's ballot where the exchange is hierarchical: a ``"vote"`` (default)
            of its ranks, or the sign of their ``"mean"`` in fp32.
        algorithm: chooses the signal that is voted on: an ``Algorithm``, or the name of one:
            ``"sign"`` (default), the gradient itself; ``"signum"`` or ``"lion"``, which keep
            momentum on each rank; ``"ef_sign"``, which keeps what ballots left unsaid; or
            ``"onebit"``, by which the verdict is no majority but the ranks' mean, told by signs
            with a scale for each 4096 coordinates. In a single vote what is kept belongs to its
            name.
        fallback: ``"allreduce"`` lets ``exchange="auto"`` take a dense fp32 allreduce for buckets
            that the cost model expects it to be faster for: the sign of the mean, or with ``scale``
            the mean itself, however far one rank moves it. None (default): everything is voted on.
    """

    ties: str = "coin"
    exchange: str = "sharded"
    seed: int = 0
    scale: str | None = None
    nonfinite: str = "abstain"
    local: str = "vote"
    fallback: str | None = None
    algorithm: Any = "sign"

    def __post_init__(self) -> None:
        """Checks every field but the exchange and the algorithm, which their registries check.

        Raises:
            ValueError: names the field, the known values and what came.
        """
        choose("ties", self.ties, TIES)
        if self.scale is None:
            feeds_back = getattr(self.algorithm, "feedback", False)
            object.__setattr__(self, "scale", "mean_abs" if feeds_back else "none")
        choose("scale", self.scale, SCALES)
        choose("nonfinite", self.nonfinite, NONFINITE)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"seed: expected an integer, got {self.seed!r}")
        choose("local", self.local, LOCAL)
        if self.local != "vote" and self.exchange not in ("hierarchical", AUTO):
            raise ValueError(
                f"local: {self.local!r} needs exchange='hierarchical' or 'auto', got "
                f"{self.exchange!r}"
            )
        if self.fallback is not None:
            choose("fallback", self.fallback, (ALLREDUCE,))
            if self.exchange != AUTO:
                raise ValueError(
                    f"fallback: {self.fallback!r} needs exchange='auto', got {self.exchange!r}"
                )

    def claim(self) -> dict[str, Any]:
        """What ranks have to agree on."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"algorithm": repr(self.algorithm)}
