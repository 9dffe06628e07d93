"""Importing the binding: what it brings and what it leaves alone, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)


def python(code: str, tmp_path) -> str:
    """What the code prints, run away from the repository."""
    command = [sys.executable, "-c", code]
    environment = launch.environment()
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_everything_of_horovods_is_there(tmp_path):
    code = """
import horovod.torch as plain
import hvd_sign.torch as hvd
names = {name for name in dir(plain) if not name.startswith("_")}
print(sorted(names - set(dir(hvd))))
"""
    assert python(code, tmp_path) == "[]"


def test_every_operation_that_may_lack_a_name_is_ours(tmp_path):
    """Horovod names it after its handle, and votes over its collectives take handles too."""
    kinds = {
        "allgather": ("", "_async"),
        "allreduce": ("", "_", "_async", "_async_"),
        "alltoall": ("", "_async"),
        "broadcast": ("", "_", "_async", "_async_"),
        "broadcast_parameters": ("",),
        "grouped_allgather": ("", "_async"),
        "grouped_allreduce": ("", "_", "_async", "_async_"),
        "grouped_reducescatter": ("", "_async"),
        "reducescatter": ("", "_async"),
    }
    names = sorted(kind + ending for kind, endings in kinds.items() for ending in endings)
    code = f"""
import inspect
import horovod.torch as plain
import hvd_sign.torch as hvd
from hvd_sign_torch.named_operations import OPERATIONS
assert sorted([*OPERATIONS, "broadcast_parameters"]) == {names}
for name in {names}:
    ours, theirs = getattr(hvd, name), getattr(plain, name)
    assert ours is not theirs, name
    if "allreduce" not in name:
        assert inspect.signature(ours) == inspect.signature(theirs), name
        assert ours.__doc__ == theirs.__doc__, name
print("done")
"""
    assert python(code, tmp_path) == "done"


def test_horovod_is_not_patched(tmp_path):
    """Every attribute of every Horovod module is the same object after the import."""
    code = """
import sys
import horovod.torch as plain
import horovod.torch.optimizer, horovod.torch.functions, horovod.torch.mpi_ops

def contents():
    modules = [m for name, m in sorted(sys.modules.items()) if name.startswith("horovod")]
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            found[module.__name__, name] = id(value)
            if isinstance(value, type):
                found.update({(module.__name__, name, k): id(v) for k, v in vars(value).items()})
    return found

before = contents()
import hvd_sign.torch as hvd
hvd.init()
after = contents()
gone = ("_handle_map",)
print(sorted(str(k) for k in before if before[k] != after.get(k) and k[1] not in gone))
"""
    assert python(code, tmp_path) == "[]"


def test_importing_the_core_imports_no_framework(tmp_path):
    code = """
import sys, hvd_sign
print(sorted({"torch", "horovod", "tensorflow", "mpi4py.MPI"} & set(sys.modules)))
"""
    assert python(code, tmp_path) == "[]"


def test_importing_does_not_initialise_horovod(tmp_path):
    code = "import hvd_sign.torch as hvd; print(hvd.is_initialized())"
    assert python(code, tmp_path) == "False"


def test_a_vote_without_a_launcher(tmp_path):
    code = """
import torch, hvd_sign.torch as hvd
hvd.init()
print(hvd.size(), hvd.allreduce(torch.tensor([3.0, -2.0]), op=hvd.MajorityVote).tolist())
"""
    assert python(code, tmp_path) == "1 [1.0, -1.0]"
