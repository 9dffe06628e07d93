"""Which of a model's parameters are voted on, and which go dense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

VOTE = "vote"
"""The key by which a group of parameters says it."""


class Choice(NamedTuple):
    """Chooses by name, by size and by group; whoever any of them leaves out goes dense.

    Attributes:
        vote_if: predicate of a parameter's name and the parameter; None: all are voted on.
        min_size: coordinates that a parameter must have to be voted on.
    """

    vote_if: Callable[[str, Any], Any] | None
    min_size: int

    def votes(self, name: str, parameter: Any, size: int, group: Mapping[str, Any]) -> bool:
        """Whether a parameter is voted on.

        Args:
            name: the parameter's.
            parameter: the framework's.
            size: its coordinates.
            group: its options, of which ``"vote"`` counts here; without it, it is voted on.

        Raises:
            TypeError: group or predicate give no truth value.
        """
        said = group.get(VOTE, True)
        if not isinstance(said, bool):
            raise TypeError(f"parameter {name!r}: {VOTE!r}: expected True or False, got {said!r}")
        if not said or size < self.min_size:
            return False
        chosen = True if self.vote_if is None else self.vote_if(name, parameter)
        if not isinstance(chosen, bool):
            raise TypeError(
                f"vote_if: expected True or False for parameter {name!r}, got {chosen!r}"
            )
        return chosen


def make_choice(vote_if: Any, min_size: Any) -> Choice:
    """From a user's arguments, of which None ones leave nothing out.

    Raises:
        TypeError: ``vote_if`` cannot be called.
        ValueError: ``min_size`` is no number of coordinates.
    """
    if vote_if is not None and not callable(vote_if):
        raise TypeError(f"vote_if: expected a function of name and parameter, got {vote_if!r}")
    size = 0 if min_size is None else min_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"min_size: expected a number of coordinates from 0, got {min_size!r}")
    return Choice(vote_if, size)
