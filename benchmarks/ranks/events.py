"""What a benchmark's rank 0 tells the launcher, and what a rank sees of its host and itself."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Usage:
    """Counters that only grow; the difference of two tells what was used between them.

    Attributes:
        wire_bytes: that left this host, by the counter of its interface; 0 where it has none.
        cpu_seconds: processor time of this process, all its threads.
        machine_seconds: processor time of all programs on the machine, and time that other virtual
            machines took from it; interrupts are not counted.
    """

    wire_bytes: float
    cpu_seconds: float
    machine_seconds: float

    @classmethod
    def now(cls, interface: str | None) -> Usage:
        """The counters' state; `interface` is one that carries no other rank's traffic."""
        times = psutil.cpu_times()
        busy = (getattr(times, name, 0.0) for name in ("user", "nice", "system", "steal"))
        return cls(bytes_sent(interface), time.process_time(), sum(busy))

    def since(self, before: Usage) -> Usage:
        """What was used since an earlier state."""
        return Usage(
            self.wire_bytes - before.wire_bytes,
            self.cpu_seconds - before.cpu_seconds,
            self.machine_seconds - before.machine_seconds,
        )


def bytes_sent(interface: str | None) -> int:
    """Bytes that left this host, by the counter of its interface; 0 where it has none."""
    return psutil.net_io_counters(pernic=True)[interface].bytes_sent if interface else 0
