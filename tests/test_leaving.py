"""A rank that leaves, by its program's end or by ``shutdown()``, while the others go on."""

from __future__ import annotations

import re
import sys

import launch
import pytest

NEEDED = {"torch": launch.has("torch"), "tensorflow": launch.has("tensorflow")}
NEEDED["horovod"] = launch.has("horovod")
SILENT = {
    "check disabled": {"HOROVOD_STALL_CHECK_DISABLE": "1"},
    "check time 0": {"HOROVOD_STALL_CHECK_TIME_SECONDS": "0"},
}
"""Goodbyes are heard whatever these say."""


@pytest.mark.parametrize(
    ("runtime", "what", "way", "stalls"),
    [
        ("horovod", "optimizer", "exit", "check disabled"),
        ("horovod", "optimizer", "shutdown", "check time 0"),
        ("horovod", "vote", "shutdown", "check disabled"),
        ("horovod", "process set", "return", "check time 0"),
        ("mpi", "optimizer", "return", "check time 0"),
        ("mpi", "measured optimizer", "shutdown", "check disabled"),
        ("mpi", "dense optimizer", "exit", "check disabled"),
        ("mpi", "sum", "shutdown", "check time 0"),
        ("mpi", "process set", "shutdown", "check disabled"),
        ("mpi", "join", "exit", "check time 0"),
        ("horovod", "init again", "return", "check disabled"),
        ("mpi", "init again", "exit", "check time 0"),
        ("horovod", "tensorflow optimizer", "shutdown", "check disabled"),
        ("mpi", "tensorflow dense optimizer", "exit", "check time 0"),
    ],
)
def test_the_others_hear_who_left(tmp_path, runtime, what, way, stalls):
    framework = "tensorflow" if what.startswith("tensorflow") else "torch"
    if not NEEDED[framework] or (runtime == "horovod" and not NEEDED["horovod"]):
        pytest.skip(f"needs {framework}, and Horovod on its runtime")
    program = str(launch.RANKS / "programs" / "leaves.py")
    extra = {"HVD_SIGN_RUNTIME": runtime, "HOROVOD_DYNAMIC_PROCESS_SETS": "1", **SILENT[stalls]}
    ranks = 3 if what in ("sum", "join") else 2
    command = [*launch.mpirun(ranks), sys.executable, program, what, way]
    outcome = launch.run(command, tmp_path, limit=60, extra=extra)
    assert not outcome.killed, outcome.report()
    assert bool(outcome.returncode) == (way == "exit"), outcome.report()
    why = "rank 1 called shutdown()" if way == "shutdown" else "the program of rank 1 has ended"
    sentence = r"rank (\d) heard: (?:vote '.+' cannot be held|init\(\)): (.+)"
    heard = re.findall(sentence, outcome.output)
    others = [str(rank) for rank in range(ranks) if rank != 1]
    assert sorted(heard) == [(rank, why) for rank in others], outcome.report()
    assert len(re.findall(r"rank [02] done", outcome.output)) == len(others), outcome.report()
