"""What a process of its own finds out about a library, by loading it. Prints JSON.

``python -m hvd_sign.doctor.probes NAME``. Nothing here starts MPI or uses a GPU.
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hvd_sign.core.process import import_mpi, mpi_name
from hvd_sign.transports.native import ENGINE, load_engine

LIBMPI = re.compile(r"/libmpi(ch|_cray|_gnu\w*)?\.so[.\d]*$")


def mpi4py() -> dict[str, Any]:
    """The MPI library behind mpi4py."""
    return {"library": mpi_name(import_mpi().Get_library_version()), "loaded": loaded()}


def engine() -> dict[str, Any]:
    """Whether the native engine was built, and why it cannot be used, if it cannot."""
    if find_spec("hvd_sign._engine") is None:
        return {"built": False}
    os.environ[ENGINE] = "native"
    try:
        module = load_engine(import_mpi())
    except RuntimeError as error:
        return {"built": True, "refused": str(error).partition("cannot be used: ")[2] or str(error)}
    return {"built": True, "version": module.__version__}


def torch() -> dict[str, Any]:
    """PyTorch, its GPUs, and the Horovod built for it."""
    module = import_module("torch")
    cuda = module.cuda.is_available()
    nccl = ".".join(map(str, module.cuda.nccl.version())) if cuda else None
    gpus = {"built": module.version.cuda, "seen": module.cuda.device_count(), "nccl": nccl}
    return {"version": str(module.__version__), "gpus": gpus, "horovod": horovod("torch")}


def tensorflow() -> dict[str, Any]:
    """TensorFlow, its GPUs, and the Horovod built for it."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    module = import_module("tensorflow")
    build = module.sysconfig.get_build_info()
    seen = len(module.config.list_physical_devices("GPU"))
    gpus = {"built": build.get("cuda_version"), "seen": seen, "nccl": None}
    return {"version": str(module.__version__), "gpus": gpus, "horovod": horovod("tensorflow")}


def horovod(framework: str) -> dict[str, Any]:
    """What Horovod was built with for a framework."""
    try:
        module = import_module(f"horovod.{framework}")
        built = {
            name: bool(getattr(module, f"{name}_built")())
            for name in ("mpi", "gloo", "nccl", "cuda")
        }
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"built": built, "loaded": loaded()}


def loaded() -> list[str]:
    """The MPI libraries that this process has loaded, as files."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines()}
    return sorted(os.path.realpath(path) for path in paths if LIBMPI.search(path))


def main(name: str) -> None:
    """Prints what one of the functions above finds."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs elsewhere
    found = {"mpi4py": mpi4py, "engine": engine, "torch": torch, "tensorflow": tensorflow}[name]()
    with out:
        print(json.dumps(found), file=out)


if __name__ == "__main__":
    main(sys.argv[1])
