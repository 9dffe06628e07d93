"""Runs a command for at most so many seconds, then ends it and everything that it started.

    python3 scripts/guard.py SECONDS PROGRAM [ARGUMENT...]

A launcher of MPI ranks puts them in process groups of their own; so all processes of the command's
session are ended, and those whose environment carries its mark. Exit status: the command's, 124
after the time limit, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

MARK = "HVD_SIGN_GUARD"
GRACE = 10.0


def members(session: int, mark: str) -> list[int]:
    """Returns the processes of a session, and those that carry the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            marked = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile, or somebody else's
            continue
        if int(fields[3]) == session or marked:
            found.append(int(folder.name))
    return found


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Asks the command to end, then kills whatever is left of it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    for pid in members(process.pid, mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def stop(number: int, frame: FrameType | None) -> None:
    """Turns a signal into the end of this program, so that the command ends with it."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its exit status."""
    seconds, *command = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    mark = f"{os.getpid()}.{time.time_ns()}"
    process = subprocess.Popen(
        command,
        env={**os.environ, MARK: mark},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=float(seconds))
    except subprocess.TimeoutExpired:
        print(f"guard: ended after {seconds} s: {' '.join(command)}", file=sys.stderr)
        return 124
    finally:
        end(process, mark)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
