"""The ranks of a job that holds its nodes: `--network allocation`, on a real network.

Whoever holds the nodes, as the scripts of `slurm/` do, says in variables how ranks are started
there, so that a benchmark's command line is the same on every cluster:

- `HVD_SIGN_BENCH_LAUNCH`: a command line that starts the program behind it on every rank;
- `HVD_SIGN_BENCH_NODES`: over how many nodes the ranks are spread;
- `HVD_SIGN_BENCH_LAUNCHER`: the launcher's name, for reports;
- `HVD_SIGN_BENCH_INTERFACE`: the interface of each node whose counter shows the traffic, if any.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchError

MODE = "allocation"
PREFIX = "HVD_SIGN_BENCH_"


@dataclass(frozen=True)
class Allocation:
    """How ranks are started on the nodes of a job.

    Attributes:
        command: a program and its arguments come behind it.
        nodes: how many.
        launcher: its name.
        interface: whose counter shows one worker's traffic; None: there is none, as where several
            workers share a node.
    """

    command: list[str]
    nodes: int
    launcher: str
    interface: str | None


def given(workers: int) -> Allocation:
    """The allocation that the environment describes, for so many workers. Raises BenchError."""
    command = shlex.split(os.environ.get(f"{PREFIX}LAUNCH", ""))
    if not command:
        raise BenchError(
            f"--network {MODE}: {PREFIX}LAUNCH is not set: run it in a job of slurm/, or set it to "
            "what starts a program on every rank, as in 'srun --mpi=pmix'"
        )
    text = os.environ.get(f"{PREFIX}NODES", "")
    if not text.isdecimal() or int(text) < 1 or workers < 1 or workers % int(text):
        raise BenchError(
            f"--network {MODE}: expected --workers to be a multiple of {PREFIX}NODES, got "
            f"{workers} and {text!r}"
        )
    nodes = int(text)
    launcher = os.environ.get(f"{PREFIX}LAUNCHER") or Path(command[0]).name
    interface = os.environ.get(f"{PREFIX}INTERFACE") or None
    return Allocation(command, nodes, launcher, interface if workers == nodes else None)


def workers_of_a_host(network: str, workers: int) -> int:
    """How many of a benchmark's workers share a machine. Raises BenchError."""
    return workers // given(workers).nodes if network == MODE else workers
