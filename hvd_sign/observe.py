"""What a user can watch: a timeline, a record of each step, debug lines. Off unless asked for.

HVD_SIGN_TIMELINE=FILE.json   spans of every vote in the Chrome trace format, for Perfetto.
HVD_SIGN_RECORD=FILE.jsonl    one line of JSON for each step of an optimizer.
HVD_SIGN_DEBUG=1              what each rank asks for, begins and ends, for hunting hangs.

Each rank writes a file of its own: FILE.json on rank 0, FILE.1.json on rank 1. The command
``hvd-sign timeline`` lays them, and Horovod's own timeline, over one another.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger("hvd_sign")


class Timeline:
    """Spans as Chrome trace events; a process of the trace is a rank, a thread of it a stream.

    Times are microseconds since its start, by the monotonic clock, and the first event tells when
    that was, as in Horovod's timeline.
    """

    def __init__(self, file: TextIO, rank: int) -> None:
        self._file = file
        self._rank = rank
        self._lock = threading.Lock()
        self._start = time.monotonic()
        about = {
            "name": f"votes of rank {rank}",
            "start_time_since_epoch_in_micros": round(1e6 * time.time()),
        }
        file.write("[\n")
        self._write({"ph": "M", "name": "process_name", "args": about})

    def span(self, name: str, stream: int, begin: float, end: float, **args: Any) -> None:
        """Adds a span.

        Args:
            name: what was done.
            stream: whose vote.
            begin: seconds of ``time.monotonic()``; so is ``end``.
            args: shown beside it.
        """
        self._write(
            {
                "ph": "X",
                "name": name,
                "tid": stream,
                "ts": round(1e6 * (begin - self._start), 1),
                "dur": round(1e6 * (end - begin), 1),
                "args": args,
            }
        )

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps({"pid": self._rank, "cat": "vote", **event})
        with self._lock:
            # The format allows a list to end without its bracket, as a killed program leaves it.
            self._file.write(line + ",\n")

    def flush(self) -> None:
        """Writes out what is buffered."""
        with self._lock:
            self._file.flush()


class StepRecord:
    """One line of JSON for each step of an optimizer."""

    def __init__(self, file: TextIO, rank: int) -> None:
        self._file = file
        self._rank = rank

    def step(self, **fields: Any) -> None:
        """Writes a line."""
        self._file.write(json.dumps({"rank": self._rank, **fields}) + "\n")
        self._file.flush()


class Observers:
    """The ones that the environment asks for; None where it does not."""

    def __init__(self) -> None:
        self.timeline: Timeline | None = None
        self.record: StepRecord | None = None
        self._opened = False

    def open(self, rank: int) -> None:
        """Opens what is asked for, once; the rank is not known before MPI is.

        Raises:
            ValueError: a file cannot be written.
        """
        if self._opened:
            return
        self._opened = True
        timeline = _open("HVD_SIGN_TIMELINE", rank)
        if timeline is not None:
            self.timeline = Timeline(timeline, rank)
        record = _open("HVD_SIGN_RECORD", rank)
        if record is not None:
            self.record = StepRecord(record, rank)
        if os.environ.get("HVD_SIGN_DEBUG", "0") == "1":
            handler = logging.StreamHandler(sys.stderr)
            line = f"[hvd_sign {rank}] %(relativeCreated)d ms: %(message)s"
            handler.setFormatter(logging.Formatter(line))
            logger.addHandler(handler)
            logger.setLevel(logging.DEBUG)

    def flush(self) -> None:
        """Writes out what is buffered."""
        if self.timeline is not None:
            self.timeline.flush()


observers = Observers()


def _open(variable: str, rank: int) -> TextIO | None:
    named = os.environ.get(variable)
    if not named:
        return None
    path = Path(named)
    if rank > 0:
        path = path.with_name(f"{path.stem}.{rank}{path.suffix}")
    try:
        return path.open("w")
    except OSError as error:
        raise ValueError(f"{variable}: expected a file that can be written, got {error}") from error
