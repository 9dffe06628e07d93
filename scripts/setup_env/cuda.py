"""CUDA, where PyTorch was built for it.

Horovod builds its CUDA part as soon as there is an nvcc on PATH, and fails if the headers or the
runtime library are missing. So an nvcc without its toolkit is kept out of its sight; the votes need
no CUDA of Horovod's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

NVCC = "nvcc"
HEADERS = ("include/cuda_runtime.h", "targets/*/include/cuda_runtime.h")
RUNTIMES = ("lib*/libcudart.so", "lib/*/libcudart.so", "targets/*/lib/libcudart.so")


def toolkit(env: Mapping[str, str]) -> str:
    """Returns the nvcc on PATH if the rest of its toolkit is there; else nothing."""
    found = shutil.which(NVCC, path=env.get("PATH"))
    if found is None:
        return ""
    for nvcc in (Path(found), Path(os.path.realpath(found))):
        prefix = nvcc.parent.parent
        parts = (HEADERS, RUNTIMES)
        if all(any(next(prefix.glob(shape), None) for shape in part) for part in parts):
            return found
    return ""


def path_without_nvcc(path: str, workshop: Path) -> str:
    """Returns a search path that finds all that ``path`` finds, except nvcc.

    Args:
        path: folders, as in PATH.
        workshop: where to put a folder of links for each folder that holds an nvcc.
    """
    folders = []
    for number, folder in enumerate(path.split(os.pathsep)):
        if folder and Path(folder, NVCC).exists():
            links = workshop / f"path{number}"
            links.mkdir()
            for entry in Path(folder).resolve().iterdir():
                if entry.name != NVCC:
                    (links / entry.name).symlink_to(entry)
            folder = str(links)
        folders.append(folder)
    return os.pathsep.join(folders)
