"""What a user may choose of an optimizer's votes beside each vote's options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from hvd_sign.core.options import positive_factor


@dataclass(frozen=True)
class TrainingOptions:
    """Keywords of an optimizer's or a tape's votes that single votes do not have.

    They are the same on all ranks; None takes the default.

    Attributes:
        warmup_steps: so many steps at first are dense: every gradient becomes the mean of all
            ranks', as with Horovod's ``Average``, on which the optimizer steps; then they vote.
            What an algorithm keeps is fed with each rank's own gradients meanwhile. Steps are the
            votes' own, which checkpoints have, so that a resumed run warms up no second time.
            Default 0.
        clip_value: each rank clips its gradients' coordinates to +-this before anything else is
            done with them. The sign of a gradient does not change by it: it bounds what an
            algorithm with state takes in at a step, a scale of ``"mean_abs"``, and what is dense.
            Of unscaled gradients, where there is a loss scale. Default None: they stay.
        clip_norm: each rank scales all its gradients together down to this 2-norm, as large as they
            are unscaled, for the same ends. It is known when the last gradient of a step is there,
            so that votes then begin: none is hidden behind backward. NaN and Inf are left out of
            the norm, and as they are. Default None.
        check_every: before the first step and then every so many, ranks compare checksums of their
            parameters, of the optimizer's options such as learning rates, and of what the votes go
            on from; where they differ all of them raise the same error after that exchange. Ranks
            that have joined are left out. One pass over the parameters and one small message.
            Default 0: never.
    """

    warmup_steps: int = 0
    clip_value: float | None = None
    clip_norm: float | None = None
    check_every: int = 0

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: names the field, what is expected and what came.
        """
        for name in ("warmup_steps", "check_every"):
            _whole(name, getattr(self, name))
        for name in ("clip_value", "clip_norm"):
            if getattr(self, name) is not None:
                positive_factor(name, getattr(self, name))
        if self.clip_value is not None and self.clip_norm is not None:
            raise ValueError(
                f"clip_value, clip_norm: expected one of them, got {self.clip_value} and "
                f"{self.clip_norm}"
            )

    def claim(self) -> dict[str, Any]:
        """What ranks have to agree on."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _whole(argument: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{argument}: expected a whole number of steps from 0, got {value!r}")


KEYWORDS = tuple(field.name for field in fields(TrainingOptions))


def split_keywords(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of ``VoteOptions``, and those of ``TrainingOptions`` that are not None."""
    own = {name: value for name, value in given.items() if name in KEYWORDS and value is not None}
    return {name: value for name, value in given.items() if name not in KEYWORDS}, own
