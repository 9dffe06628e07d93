"""What checkpoints hold of a session: which part is every rank's, and whether it is sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.devices import check_numbers
from hvd_sign.votes import VoteRule, initial_of

State = Mapping[str, npt.NDArray[Any]]

STEP = "step"
"""The name of the number of steps."""
RULE = "rule/"
"""What the names of the rule's arrays begin with."""


def common_part(state: State) -> dict[str, npt.NDArray[Any]]:
    """What has to be the same on all ranks, of what ``VoteSession.state()`` returned."""
    return {name: array for name, array in state.items() if name == STEP or name.startswith(RULE)}


def own_part(state: State) -> dict[str, npt.NDArray[Any]]:
    """What is each rank's own, of what ``VoteSession.state()`` returned."""
    common = common_part(state)
    return {name: array for name, array in state.items() if name not in common}


def check_state(state: State, learned: State) -> set[str]:
    """Checks what is common in a session's state.

    Args:
        state: to be loaded.
        learned: the rule's arrays as they are.

    Returns:
        The names that were checked.

    Raises:
        ValueError: one is missing or damaged.
    """
    for name in (STEP, *(f"{RULE}{known}" for known in learned)):
        if name not in state:
            raise ValueError(f"state: expected {name!r}, got only {sorted(state)[:5]}")
    steps = np.asarray(state[STEP])
    if steps.shape != () or steps.dtype.kind not in "iu" or steps < 0:
        raise ValueError(f"state: {STEP!r}: expected a whole number from 0, got {state[STEP]!r}")
    for known, array in learned.items():
        check_numbers(repr(f"{RULE}{known}"), state[f"{RULE}{known}"], array.size)
    return {STEP, *(f"{RULE}{known}" for known in learned)}


def refitted(common: State, rule: VoteRule, voters: int) -> dict[str, npt.NDArray[Any]]:
    """What is common, for other voters than those who saved it.

    Args:
        common: the saved ``common_part()``.
        rule: what it has learned begins anew if that has another size for so many voters.
        voters: how many there are now.
    """
    learned = {name: np.asarray(array) for name, array in common.items() if name != STEP}
    initial = {f"{RULE}{name}": array for name, array in initial_of(rule, voters).items()}
    sizes = [{name: array.size for name, array in part.items()} for part in (learned, initial)]
    return {STEP: common[STEP], **(learned if sizes[0] == sizes[1] else initial)}
