"""HOROVOD_TIMELINE on our own runtime: the operations of all ranks, as Horovod writes them down.

Rank 0 writes a Chrome trace. A process of the trace is an operation's name; its spans are how long
rank 0 waited for the others, and then what was done. ``hvd-sign timeline`` lays it beside the
votes', which HVD_SIGN_TIMELINE writes.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

logger = logging.getLogger("hvd_sign")

VARIABLE = "HOROVOD_TIMELINE"
DYNAMIC = "DYNAMIC"
"""What the variable says where only ``start_timeline()`` opens a file."""


class Timeline:
    """A file of spans, if one is open; what cannot be written is warned of once, and left out."""

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._lock = threading.Lock()
        self._start = 0.0
        self._numbers: dict[str, int] = {}

    def open(self, path: str) -> None:
        """Begins a file, in the place of one that is open."""
        self.close()
        with self._lock:
            try:
                # By lines: a program that is killed leaves what was done until then.
                self._file = open(path, "w", buffering=1)  # noqa: SIM115, closed by close()
            except OSError as error:
                logger.warning("no timeline is written: %s", error)
                return
            self._start, self._numbers = time.monotonic(), {}
            begun = {"start_time_since_epoch_in_micros": round(1e6 * time.time())}
            self._text("[\n")
            self._process(0, begun)

    def open_as_asked(self) -> None:
        """Begins the file that the environment names."""
        path = os.environ.get(VARIABLE, "")
        if path and path != DYNAMIC:
            self.open(path)

    def close(self) -> None:
        """Ends the file, if one is open."""
        with self._lock:
            if self._file is not None:
                self._text("\n]\n")
            if self._file is not None:
                self._file.close()
                self._file = None

    def operation(
        self, kind: str, name: str, asked: float, begun: float, claim: Callable[[], dict[str, Any]]
    ) -> None:
        """Adds an operation that has ended now.

        Args:
            kind: such as ``"allreduce"``.
            name: of the call.
            asked: seconds of ``time.monotonic()`` when this rank asked for it.
            begun: likewise, when all ranks had.
            claim: tells what is shown beside it.
        """
        ended = time.monotonic()
        full = name if name.startswith(f"{kind}.") else f"{kind}.{name}"
        with self._lock:
            if self._file is None:
                return
            if full not in self._numbers:
                self._numbers[full] = len(self._numbers) + 1
                self._process(self._numbers[full], {"name": full})
            number = self._numbers[full]
            self._event(number, f"NEGOTIATE_{kind.upper()}", asked, begun, {})
            self._event(number, kind.upper(), begun, ended, claim())

    def _process(self, number: int, args: dict[str, Any]) -> None:
        about = {"ph": "M", "pid": number}
        first = "" if number == 0 else ",\n"
        self._text(first + json.dumps({"name": "process_name", **about, "args": args}))
        sort = {"name": "process_sort_index", **about, "args": {"sort_index": number}}
        self._text(",\n" + json.dumps(sort))

    def _event(
        self, number: int, what: str, begin: float, end: float, args: dict[str, Any]
    ) -> None:
        start = {"ph": "B", "name": what, "ts": self._micros(begin), "pid": number}
        stop = {"ph": "E", "ts": self._micros(end), "pid": number, "args": args}
        self._text(",\n" + json.dumps(start) + ",\n" + json.dumps(stop))

    def _micros(self, seconds: float) -> int:
        return max(0, round(1e6 * (seconds - self._start)))

    def _text(self, text: str) -> None:
        try:
            if self._file is not None:
                self._file.write(text)
        except OSError as error:
            logger.warning("the timeline ends here: %s", error)
            self._file = None


timeline = Timeline()
