"""What a benchmark's rank 0 tells the launcher, and what a rank can see of its own traffic."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil

PROGRESS_SECONDS = 0.2


class Events:
    """Appends one JSON object a line to a file; every other rank's stay silent.

    Args:
        path: the file.
        rank: ours.
    """

    def __init__(self, path: Path, rank: int) -> None:
        self._file = path.open("a") if rank == 0 else None
        self._last = 0.0

    def emit(self, event: str, **fields: Any) -> None:
        """Appends an event."""
        if self._file is not None:
            print(json.dumps({"event": event, **fields}), file=self._file, flush=True)

    def progress(self, method: str, done: int) -> None:
        """Appends how many steps of a method are done, at most five times a second."""
        if time.perf_counter() - self._last > PROGRESS_SECONDS:
            self._last = time.perf_counter()
            self.emit("progress", method=method, done=done)


def bytes_sent(interface: str | None) -> int:
    """Bytes that left this host, by the counter of its interface; 0 where it has none."""
    return psutil.net_io_counters(pernic=True)[interface].bytes_sent if interface else 0
