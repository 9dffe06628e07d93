"""CUDA, where PyTorch was built for it.

With such a PyTorch, Horovod builds its CUDA part as soon as it sees some nvcc, and fails where the
rest of the toolkit is missing, is of another version than PyTorch's, or is not where nvcc lies. So
it is either shown a whole toolkit, or told that PyTorch has no CUDA; the votes themselves need none
of Horovod's.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from scripts.setup_env import machine

USUAL = "/usr/local/cuda"
PARTS = (
    ("bin/nvcc",),
    ("include/cuda_runtime.h", "targets/*/include/cuda_runtime.h"),
    ("lib*/libcudart.so", "lib/*/libcudart.so", "targets/*/lib/libcudart.so"),
)


def toolkits(env: Mapping[str, str], usual: str = USUAL) -> list[str]:
    """Returns the folders of whole CUDA toolkits: named, found by their nvcc, and the usual one."""
    named = [env[name] for name in ("CUDA_HOME", "CUDA_PATH") if env.get(name)]
    nvcc = shutil.which("nvcc", path=env.get("PATH"))
    found = [
        str(Path(path).parent.parent) for path in (nvcc, nvcc and os.path.realpath(nvcc)) if path
    ]
    return [
        folder
        for folder in dict.fromkeys([*named, *found, usual])
        if all(any(next(Path(folder).glob(shape), None) for shape in part) for part in PARTS)
    ]


def toolkit(torch_cuda: str, env: Mapping[str, str], usual: str = USUAL) -> str:
    """Returns the folder of the toolkit to build Horovod's CUDA part with; empty: build none.

    Args:
        torch_cuda: the CUDA version of PyTorch, as in "13.0"; empty if it has none.
        env: environment variables.
        usual: where toolkits are installed usually.
    """
    major = torch_cuda.partition(".")[0]
    for folder in toolkits(env, usual) if major else []:
        release = re.search(r"release (\d+)\.", machine.output([f"{folder}/bin/nvcc", "--version"]))
        if release is not None and release[1] == major:
            return folder
    return ""
