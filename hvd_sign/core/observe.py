"""What a user can watch: a timeline, a record of each step, debug lines. Off unless asked for.

HVD_SIGN_TIMELINE=FILE.json   spans of every vote in the Chrome trace format, for Perfetto.
HVD_SIGN_RECORD=FILE.jsonl    one line of JSON for each step of an optimizer.
HVD_SIGN_DEBUG=1              what each rank asks for, begins and ends, for hunting hangs.

Each rank writes a file of its own: FILE.json on rank 0, FILE.1.json on rank 1. The command
``hvd-sign timeline`` lays them, and Horovod's own timeline, over one another. Whatever cannot be
written any more, on a full disk say, is given up with a warning: nobody's training ends by it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger("hvd_sign")


BUFFERED = 8192
"""Bytes that are kept back at most, so that a killed program loses little."""


class Lines:
    """A file of lines that is given up, with a warning, once it cannot be written.

    It keeps its own buffer: Python's would fail once more wherever it is flushed, at the exit too,
    and a forked child would write it a second time.

    Args:
        variable: that named the file, for messages.
        path: written anew.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, variable: str, path: Path) -> None:
        self._variable = variable
        self._file: FileIO | None = path.open("wb", buffering=0)
        self._buffer = bytearray()
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Adds a line, which may stay in the buffer."""
        with self._lock:
            if self._file is not None:
                self._buffer += line.encode() + b"\n"
                if len(self._buffer) >= BUFFERED:
                    self._write(self._file)

    def flush(self) -> None:
        """Writes out what is buffered."""
        with self._lock:
            if self._file is not None:
                self._write(self._file)

    def _write(self, file: FileIO) -> None:
        try:
            while self._buffer:
                del self._buffer[: file.write(self._buffer)]
        except OSError as error:
            self._file = None
            self._buffer.clear()
            logger.warning(
                "%s: %s cannot be written (%s): nothing more is written to it, and all else goes "
                "on",
                self._variable,
                file.name,
                error,
            )


class Timeline:
    """Spans as Chrome trace events; a process of the trace is a rank, a thread of it a stream.

    Times are microseconds since its start, by the monotonic clock, and the first event tells when
    that was, as in Horovod's timeline.
    """

    def __init__(self, lines: Lines, rank: int) -> None:
        self._lines = lines
        self._rank = rank
        self._start = time.monotonic()
        about = {
            "name": f"votes of rank {rank}",
            "start_time_since_epoch_in_micros": round(1e6 * time.time()),
        }
        lines.add("[")
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
        # The format allows a list to end without its bracket, as a killed program leaves it.
        self._lines.add(json.dumps({"pid": self._rank, "cat": "vote", **event}) + ",")

    def flush(self) -> None:
        """Writes out what is buffered."""
        self._lines.flush()


class StepRecord:
    """One line of JSON for each step of an optimizer."""

    def __init__(self, lines: Lines, rank: int) -> None:
        self._lines = lines
        self._rank = rank

    def step(self, **fields: Any) -> None:
        """Writes a line."""
        self._lines.add(json.dumps({"rank": self._rank, **fields}))
        self._lines.flush()


class DebugLines(logging.StreamHandler[TextIO]):
    """Debug lines on standard error, until one cannot be written."""

    def __init__(self, rank: int) -> None:
        super().__init__(sys.stderr)
        line = f"[hvd_sign {rank}] %(relativeCreated)d ms: %(message)s"
        self.setFormatter(logging.Formatter(line))
        self._level_before = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.DEBUG)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Gives up; called while the error is handled."""
        logger.removeHandler(self)
        logger.setLevel(self._level_before)
        logger.warning("HVD_SIGN_DEBUG: no more lines are written (%s)", sys.exc_info()[1])


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
            DebugLines(rank)

    def flush(self) -> None:
        """Writes out what is buffered."""
        if self.timeline is not None:
            self.timeline.flush()


observers = Observers()


def _open(variable: str, rank: int) -> Lines | None:
    named = os.environ.get(variable)
    if not named:
        return None
    path = Path(named)
    if rank > 0:
        path = path.with_name(f"{path.stem}.{rank}{path.suffix}")
    try:
        return Lines(variable, path)
    except OSError as error:
        raise ValueError(f"{variable}: expected a file that can be written, got {error}") from error
