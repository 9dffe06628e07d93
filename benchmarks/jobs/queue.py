"""Slurm's queue, through its own programs: submitting, watching, and what became of a job."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

from benchmarks.errors import BenchError

LIMIT = 60.0  # seconds that a program of Slurm may take


class QueueError(BenchError):
    """Slurm refused something, or is not here; the message is what it said."""


def submit(path: Path, after: str | None = None, test_only: bool = False) -> str:
    """Submits a script and returns the job's number; or what `--test-only` says.

    Args:
        path: of the script.
        after: a job that has to be over before it starts.
        test_only: check it, and submit nothing.
    """
    line = ["sbatch", "--parsable"]
    if after is not None:
        line.append(f"--dependency=afterany:{after}")
    if test_only:
        line.append("--test-only")
    done = _run([*line, str(path)])
    if done.returncode:
        raise QueueError(f"sbatch refused {path}: {done.stderr.strip()}")
    if test_only:
        return done.stderr.strip()
    return done.stdout.strip().partition(";")[0]


def states(number: str) -> Counter[str] | None:
    """How many tasks of a job that is not over are in which state; None: the queue does not tell.

    A job without an array has one task.
    """
    done = _run(["squeue", "--noheader", "--array", f"--jobs={number}", "--format=%T"])
    if done.returncode == 0:
        return Counter(done.stdout.split())
    # Slurm forgets jobs that have been over for a while.
    return Counter() if "Invalid job id" in done.stderr else None


def _run(line: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT
        )
    except OSError as error:
        raise QueueError(f"{line[0]} cannot be started: {error}; is this a cluster?") from error
    except subprocess.TimeoutExpired as error:
        raise QueueError(f"{line[0]} did not answer for {LIMIT:.0f} s") from error
