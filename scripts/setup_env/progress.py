"""Shows what the set-up is doing, and runs its programs so that a long one is seen to live."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.setup_env.errors import explain

WIDTH = 76


def clock(seconds: float) -> str:
    """Returns minutes and seconds, as in 4:20."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Numbers the steps, times them, and keeps all output of their programs in one file.

    Args:
        steps: how many there will be.
        log: the file.
        beat: seconds between signs of life; a terminal gets one each second, on one line.
    """

    def __init__(self, steps: int, log: Path, beat: float = 20.0) -> None:
        self.steps = steps
        self.log = log
        self.live = sys.stdout.isatty()
        self.beat = 1.0 if self.live else beat
        self.began = time.monotonic()
        self._step = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def elapsed(self) -> float:
        """Returns the seconds since the first step began."""
        return time.monotonic() - self.began

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announces a step, and says how long it took."""
        self._step += 1
        self.say(f"[{self._step}/{self.steps}] {title}")
        began = time.monotonic()
        yield
        self.say(f"      done in {clock(time.monotonic() - began)}")

    def note(self, text: str) -> None:
        """Says something about the step under way."""
        self.say(f"      {text}")

    def say(self, text: str) -> None:
        """Prints a line, over a sign of life if there is one."""
        print(f"\r\033[K{text}" if self.live else text, flush=True)

    def run(
        self,
        what: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        telling: str = "",
    ) -> str:
        """Runs a program to its end and returns its output.

        Args:
            what: it does, for the error: "installing PyTorch".
            argv: the program and its arguments.
            env: its whole environment; None: this process's.
            telling: a regular expression for the lines that are worth showing as signs of life.

        Raises:
            SetupError: it failed.
        """
        began = time.monotonic()
        lines: list[str] = []
        process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        reader = threading.Thread(target=self._keep, args=(process, argv, lines), daemon=True)
        reader.start()
        try:
            self._watch(process, began, lines, re.compile(telling))
        except BaseException:  # Ctrl-C: a compiler left behind would work on for minutes
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        reader.join(timeout=5)
        output = "".join(lines)
        if process.returncode:
            raise explain(what, process.returncode, output, str(self.log))
        return output

    def _watch(
        self,
        process: subprocess.Popen[str],
        began: float,
        lines: list[str],
        telling: re.Pattern[str],
    ) -> None:
        while True:
            try:
                process.wait(timeout=self.beat)
                return
            except subprocess.TimeoutExpired:
                told = (line.strip() for line in reversed(lines.copy()) if telling.search(line))
                text = f"      {clock(time.monotonic() - began)}  {next(told, 'working')[:WIDTH]}"
                if self.live:
                    print(f"\r\033[K{text}", end="", flush=True)
                else:
                    self.say(text)

    def _keep(self, process: subprocess.Popen[str], argv: Sequence[str], lines: list[str]) -> None:
        assert process.stdout is not None
        with self.log.open("a") as log:
            print("$", *argv, file=log)
            for line in process.stdout:
                lines.append(line)
                log.write(line)
                log.flush()
