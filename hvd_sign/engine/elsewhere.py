"""What this rank waits for in another library, under names that other ranks may call votes by."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

SECOND = 1.0
"""How long a wait lasts before others are told of it, and are told of it again."""


@dataclass
class _Wait:
    name: str
    op: str
    ended: Callable[[], bool]
    next: float
    told: bool = False


class Elsewhere:
    """Operations of another library that this rank waits for."""

    def __init__(self) -> None:
        self._waits: deque[_Wait] = deque()

    def begin(self, name: str, op: str, ended: Callable[[], bool]) -> None:
        """Adds one.

        Args:
            name: the same on all ranks.
            op: what it is.
            ended: whether it has.
        """
        while self._waits and not self._waits[0].told and self._waits[0].ended():
            self._waits.popleft()
        self._waits.append(_Wait(name, op, ended, time.monotonic() + SECOND))

    def due(self) -> bool:
        """Whether there is something to tell."""
        if not self._waits:
            return False
        now = time.monotonic()
        # A copy, made at once: the thread that begins waits may add one meanwhile.
        return any(wait.next <= now for wait in tuple(self._waits))

    def to_tell(self) -> list[tuple[str, str | None]]:
        """What is to be told now: names, and the operation that is waited for, or None any more."""
        if not self._waits:
            return []
        now = time.monotonic()
        told: list[tuple[str, str | None]] = []
        for wait in [wait for wait in self._waits if wait.next <= now]:
            if wait.ended():
                self._waits.remove(wait)
                if wait.told:
                    told.append((wait.name, None))
            else:
                wait.told, wait.next = True, now + SECOND
                told.append((wait.name, wait.op))
        return told
