"""The names that scripts import: each of Horovod's, module by module, is there under ours."""

from __future__ import annotations

import subprocess
import sys

import launch
import pytest

pytestmark = pytest.mark.quick

MODULES = {
    "torch": [
        "torch",
        "torch.compression",
        "torch.elastic",
        "torch.elastic.sampler",
        "torch.elastic.state",
        "torch.functions",
        "torch.mpi_ops",
        "torch.optimizer",
        "torch.sync_batch_norm",
    ],
    "tensorflow": [
        "tensorflow",
        "tensorflow.compression",
        "tensorflow.elastic",
        "tensorflow.functions",
        "tensorflow.gradient_aggregation",
        "tensorflow.gradient_aggregation_eager",
        "tensorflow.keras",
        "tensorflow.keras.callbacks",
        "tensorflow.keras.elastic",
        "tensorflow.mpi_ops",
        "tensorflow.sync_batch_norm",
        "tensorflow.util",
        "keras",
        "keras.callbacks",
        "keras.elastic",
    ],
}
"""Of each framework: Horovod's modules, which ``hvd_sign`` has too."""

# What nothing stands for on our own runtime: how Horovod calls its library, and its small helpers.
INSIDE_HOROVOD = {
    *("HorovodAllgather", "HorovodAllreduce", "HorovodAlltoall", "HorovodBroadcast"),
    *("HorovodGroupedAllgather", "HorovodGroupedAllreduce", "HorovodGroupedReducescatter"),
    *("HorovodReducescatter", "check_installed_version"),
    *("get_average_backwards_compatibility_fun", "get_ext_suffix", "split_list"),
    *("apply_op_to_not_none_tensors", "get_not_none_from_list", "is_version_greater_equal_than"),
}

COMPARE = """
import sys
from importlib import import_module
from types import ModuleType

missing = []
for module in sys.argv[1].split():
    theirs, ours = import_module(f"horovod.{module}"), import_module(f"hvd_sign.{module}")
    parent, _, last = f"hvd_sign.{module}".rpartition(".")
    if getattr(sys.modules[parent], last) is not ours:
        missing.append(f"{module} as an attribute")
    for name, thing in vars(theirs).items():
        # Not what Horovod itself has imported from elsewhere.
        foreign = not getattr(thing, "__module__", "horovod").startswith("horovod")
        if not (name.startswith("_") or isinstance(thing, ModuleType) or foreign):
            if not hasattr(ours, name):
                missing.append(f"{module}.{name}")
print(*missing)
"""


def missing(framework: str, runtime: str, tmp_path) -> set[str]:
    """The names of Horovod's that a binding lacks, found in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, " ".join(MODULES[framework])],
        cwd=tmp_path,
        env=launch.environment({"HVD_SIGN_RUNTIME": runtime}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()


needs_both = pytest.mark.skipif(not launch.has("horovod"), reason="compares with Horovod")


@needs_both
@pytest.mark.parametrize("framework", MODULES)
def test_every_name_on_horovod(framework, tmp_path):
    pytest.importorskip(framework)
    assert missing(framework, "horovod", tmp_path) == set()


@needs_both
@pytest.mark.parametrize("framework", MODULES)
def test_every_name_on_our_own_runtime(framework, tmp_path):
    pytest.importorskip(framework)
    lacking = {name.rpartition(".")[2] for name in missing(framework, "mpi", tmp_path)}
    assert lacking - INSIDE_HOROVOD == set()
