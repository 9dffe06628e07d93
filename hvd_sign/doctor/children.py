"""Processes that may die or hang in place of the doctor."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

PROBE_SECONDS = 90.0
"""How long a library may take to load, from a slow file system, say."""

SILENT = "no answer in time"

SHOWN = 300
"""Characters of a dead process's last words."""


class ChildError(Exception):
    """A process died, or was ended after its time.

    Args:
        how: it ended.
        said: all that it wrote on its standard error; the message has the end of it.
    """

    def __init__(self, how: str, said: str = "") -> None:
        shown = said if len(said) <= SHOWN else f"... {said[-SHOWN:]}"
        super().__init__(f"{how}; it said: {shown}" if said else how)
        self.said = said


class Child:
    """A Python module that runs in a process of its own and says things, a line of JSON each.

    Args:
        module: run by ``python -m``.
        arguments: of it.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            close_fds=False,  # MPICH's launcher hands on a connection by its number
        )

    def lines(self, seconds: float) -> Iterator[Any]:
        """What it says until it ends, as it comes.

        Args:
            seconds: how long it may be silent. A line ``{"within": s}`` gives it that many for what
                comes next.

        Raises:
            ChildError: it was silent for longer, and has been ended; or it ended badly.
        """
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while True:
            if not select.select([out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.end()
                raise ChildError(SILENT, self.said())
            piece = os.read(out, 65536)
            if not piece:
                break
            *whole, self._unread = (self._unread + piece).split(b"\n")
            for line in map(json.loads, whole):
                if "within" in line:
                    deadline = time.monotonic() + line["within"]
                yield line
        code = self._process.wait()
        if code != 0:
            raise ChildError(f"it {_ending(code)}", self.said())

    def answer(self, seconds: float = PROBE_SECONDS) -> Any:
        """The only thing that it says.

        Raises:
            ChildError: see ``lines()``.
        """
        (answer,) = list(self.lines(seconds))
        return answer

    def tell(self, value: Any) -> None:
        """Hands it a value, once, on its standard input."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value).encode())
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # lines() tells that it has ended

    def end(self, seconds: float = 0.0) -> None:
        """Waits for its end that long, then ends it."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def said(self) -> str:
        """What it has written on its standard error, in one line."""
        self._errors.seek(0)
        return " ".join(self._errors.read().decode(errors="replace").split())


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    return f"was ended by {signal.Signals(-code).name}"


class Probes:
    """What ``hvd_sign.doctor.probes`` finds, each in a process of its own, all at the same time.

    Args:
        names: of what is looked at.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._children = {name: Child("hvd_sign.doctor.probes", name) for name in names}
        self._answers: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Waits for what one of them found.

        Raises:
            ChildError: it died, or is none of those.
        """
        if name not in self._children:
            raise ChildError("not asked for")
        if name not in self._answers:
            try:
                self._answers[name] = self._children[name].answer()
            except ChildError as error:
                self._answers[name] = error
        answer = self._answers[name]
        if isinstance(answer, ChildError):
            raise answer
        return answer

    def end(self) -> None:
        """Ends those that were not asked."""
        for child in self._children.values():
            child.end()
