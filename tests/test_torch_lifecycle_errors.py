"""Calls before init() and after shutdown(): what plain Horovod raises is caught from ours too."""

from __future__ import annotations

import json
import subprocess
import sys

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="compares with Horovod"
)

CALLS = """
import builtins, json, sys
from importlib import import_module
import torch

hvd = import_module(sys.argv[1])
ones = torch.ones(2)
sgd = torch.optim.SGD([torch.nn.Parameter(ones)], lr=1.0)
calls = {
    "rank": hvd.rank,
    "local_size": hvd.local_size,
    "allreduce": lambda: hvd.allreduce(ones),
    "grouped_allreduce": lambda: hvd.grouped_allreduce([ones]),
    "allgather": lambda: hvd.allgather(ones),
    "broadcast": lambda: hvd.broadcast(ones, 0),
    "alltoall": lambda: hvd.alltoall(ones),
    "reducescatter": lambda: hvd.reducescatter(ones),
    "barrier": hvd.barrier,
    "join": hvd.join,
    "broadcast_object": lambda: hvd.broadcast_object(1),
    "add_process_set": lambda: hvd.add_process_set([0]),
    "size of all": hvd.global_process_set.size,
    "rank of all": hvd.global_process_set.rank,
    "included in all": hvd.global_process_set.included,
    "start_timeline": lambda: hvd.start_timeline("timeline.json"),
    "stop_timeline": hvd.stop_timeline,
}
if len(sys.argv) > 2:
    calls["vote"] = lambda: hvd.allreduce(ones, op=hvd.MajorityVote)
    calls["voting optimizer"] = lambda: hvd.DistributedOptimizer(sgd, op=hvd.MajorityVote)


def raised(call):
    try:
        call()
    except Exception as error:
        return [k.__name__ for k in type(error).__mro__ if getattr(builtins, k.__name__, 0) is k]
    return []


before = {name: raised(call) for name, call in calls.items()}
hvd.init()
hvd.shutdown()
after = {name: raised(call) for name, call in calls.items()}
print(json.dumps([before, after]))
"""


def raised(tmp_path, module: str, runtime: str, *votes: str) -> list[dict[str, list[str]]]:
    """For each call before and after, Python's own classes of what it raises, nearest first."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS, module, *votes],
        cwd=tmp_path,
        env=launch.environment({"HVD_SIGN_RUNTIME": runtime}),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("runtime", ["horovod", "mpi"])
def test_before_and_after(tmp_path, runtime):
    theirs = raised(tmp_path, "horovod.torch", "horovod")
    ours = raised(tmp_path, "hvd_sign.torch", runtime, "votes")
    for plain, own in zip(theirs, ours, strict=True):
        missed = {name: (kinds[0], own[name]) for name, kinds in plain.items() if kinds}
        assert {name: pair for name, pair in missed.items() if pair[0] not in pair[1]} == {}
        assert plain["allreduce"][0] == "RuntimeError"
        assert {"RuntimeError", "ValueError"} <= set(own["vote"])
        assert "ValueError" in own["voting optimizer"]
