"""What this rank waits for in another library, under names that other ranks may call votes by."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SECOND = 1.0
"""How long a wait lasts before others are told of it, and are told of it again."""


@dataclass(eq=False)
class _Wait:
    name: str
    op: str
    next: float
    told: bool = False
    over: bool = False


class Elsewhere:
    """Operations of another library that this rank waits for.

    Any thread may wait; the progress thread tells.
    """

    def __init__(self) -> None:
        self._waits: list[_Wait] = []
        self._lock = threading.Lock()

    @contextmanager
    def waiting(self, name: str, op: str) -> Iterator[None]:
        """Within it this rank waits.

        Args:
            name: of the operation, the same on all ranks.
            op: what it is.
        """
        wait = _Wait(name, op, time.monotonic() + SECOND)
        with self._lock:
            self._waits.append(wait)
        try:
            yield
        finally:
            with self._lock:
                wait.over = True
                if not wait.told:
                    self._waits.remove(wait)

    def due(self) -> bool:
        """Whether there is something to tell."""
        # A copy, made at once: other threads come and go meanwhile.
        return bool(self._waits) and any(_is_due(wait) for wait in tuple(self._waits))

    def to_tell(self) -> list[tuple[str, str | None]]:
        """What is to be told now: names, and the operation that is waited for, or None any more."""
        told: list[tuple[str, str | None]] = []
        if not self._waits:
            return told
        with self._lock:
            for wait in [wait for wait in self._waits if _is_due(wait)]:
                wait.told, wait.next = True, time.monotonic() + SECOND
                if wait.over:
                    self._waits.remove(wait)
                told.append((wait.name, None if wait.over else wait.op))
        return told


def _is_due(wait: _Wait) -> bool:
    return wait.next <= time.monotonic()
