"""Horovod, built once for all frameworks and kept for the next environment.

pip would take any Horovod that it built before, whatever it was built for; so the wheel is kept
here, under a key of everything that it depends on.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.setup_env import cuda, machine
from scripts.setup_env.errors import SetupError
from scripts.setup_env.mpi import Mpi
from scripts.setup_env.progress import Progress
from scripts.setup_env.state import digest

VERSION = "0.28.1"
CMAKE = Path(__file__).parent / "cmake"
# A user's own choices, as for NCCL; which frameworks and controllers to build is ours to say.
CHOICES = re.compile(r"HOROVOD_(GPU|CPU|CUDA|NCCL|ROCM|CCL|ALLOW_MIXED|BUILD|MPICXX|CMAKE)")
ASKED_FOR = re.compile(r"HOROVOD_(WITH|WITHOUT)_")
BOTH_CONTROLLERS = (
    "import horovod.torch as hvd; assert hvd.mpi_built() and hvd.gloo_built(), "
    "'Horovod lacks a controller: MPI %s, Gloo %s' % (hvd.mpi_built(), hvd.gloo_built())"
)
TENSORFLOW_TOO = "; import horovod.tensorflow"


@dataclass(frozen=True)
class Inputs:
    """Everything that a built Horovod depends on."""

    horovod: str
    torch: str
    torch_cuda: str
    tensorflow: str
    mpi: str
    python: str
    compiler: str
    cuda: str
    machine: str
    libc: str
    recipe: str
    choices: tuple[str, ...]

    def key(self) -> str:
        """Returns the name of the folder that the wheel is kept in."""
        return digest(sorted(asdict(self).items()))


def inputs(
    torch: str,
    torch_cuda: str,
    tensorflow: str,
    library: str,
    mpi: Mpi,
    compiler: str,
    env: Mapping[str, str],
) -> Inputs:
    """Gathers what Horovod would be built from.

    Args:
        torch: its version.
        torch_cuda: the version of CUDA that it was built for; empty if for none.
        tensorflow: its version; empty without TensorFlow.
        library: what the MPI calls itself.
        mpi: which; where it is installed counts, except for the wheel's, which moves along.
        compiler: what the C++ compiler calls itself.
        env: the environment, for the user's own HOROVOD_... choices.
    """
    place = "in the environment" if mpi.kind == "wheel" else os.path.realpath(mpi.prefix)
    return Inputs(
        horovod=VERSION,
        torch=torch,
        torch_cuda=torch_cuda,
        tensorflow=tensorflow,
        mpi=f"{library} in {place}",
        python=f"{platform.python_version()} {sys.implementation.cache_tag}",
        compiler=compiler,
        cuda=cuda.toolkit(torch_cuda, env),
        machine=platform.machine(),
        libc=" ".join(platform.libc_ver()),
        recipe=digest(*sorted(CMAKE.rglob("*.cmake"))),
        choices=tuple(sorted(f"{k}={v}" for k, v in env.items() if CHOICES.match(k))),
    )


def build_environment(env: Mapping[str, str], mpi: Mpi, made_from: Inputs) -> dict[str, str]:
    """Returns the environment that Horovod is built in; the user's HOROVOD_GPU_... stay."""
    # make's own variables would tie the build to the jobs of the `make` that started the set-up.
    outer = {
        name: value
        for name, value in env.items()
        if name not in ("MAKEFLAGS", "MFLAGS") and not ASKED_FOR.match(name)
    }
    blind = made_from.torch_cuda and not made_from.cuda
    toolchain = "horovod_without_cuda.cmake" if blind else "horovod.cmake"
    places = ("CUDA_HOME", "CUDAToolkit_ROOT", "HOROVOD_CUDA_HOME") if made_from.cuda else ()
    tensorflow = "HOROVOD_WITH_TENSORFLOW" if made_from.tensorflow else "HOROVOD_WITHOUT_TENSORFLOW"
    return {
        **outer,
        **dict.fromkeys(places, made_from.cuda),
        "HOROVOD_WITH_PYTORCH": "1",
        tensorflow: "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_MPI": "1",
        "HOROVOD_WITH_GLOO": "1",
        "MAKEFLAGS": f"-j{machine.jobs()}",
        "CMAKE_TOOLCHAIN_FILE": str(CMAKE / toolchain),
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # its bundled Gloo declares an older CMake
        "MPI_HOME": mpi.prefix,
    }


def cache_folder(env: Mapping[str, str]) -> Path:
    """Returns the folder that built wheels are kept in."""
    base = env.get("XDG_CACHE_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~"), ".cache")
    return home / "hvd_sign" / "horovod"


def kept(folder: Path) -> Path | None:
    """Returns the whole wheel in this folder; None if there is none."""
    wheels = [wheel for wheel in folder.glob("horovod-*.whl") if zipfile.is_zipfile(wheel)]
    return wheels[0] if wheels else None


def build(
    progress: Progress,
    python: str,
    env: Mapping[str, str],
    mpi: Mpi,
    made_from: Inputs,
    keep: Path,
) -> Path:
    """Builds the wheel and keeps it.

    Args:
        progress: shows the build, which takes minutes.
        python: of the environment, with the frameworks installed.
        env: its environment variables.
        mpi: to build for.
        made_from: written beside the wheel, for whoever looks there.
        keep: folder to keep the wheel in.

    Returns:
        the wheel's path.

    Raises:
        SetupError: the build failed, or the folder cannot be written.
    """
    try:
        keep.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix="building-", dir=keep.parent))
    except OSError as error:
        raise SetupError(
            f"the built Horovod cannot be kept in {keep.parent} ({error.strerror}): name a folder "
            "that can be written in XDG_CACHE_HOME"
        ) from None
    try:
        wheel = [python, "-m", "pip", "wheel", "-v", "--no-cache-dir", "--no-build-isolation"]
        progress.run(
            "building Horovod",
            [*wheel, "--no-deps", "-w", str(workshop), f"horovod=={VERSION}"],
            build_environment(env, mpi, made_from),
            telling=r"^\s*\[ *\d+%\]",  # CMake's own progress, between the compiler's warnings
        )
        (workshop / "made_from.json").write_text(json.dumps(asdict(made_from), indent=1))
        if kept(keep) is None:  # else another set-up has built the same meanwhile
            shutil.rmtree(keep, ignore_errors=True)
            workshop.rename(keep)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    wheel_file = kept(keep)
    if wheel_file is None:
        raise SetupError(f"pip built no whole Horovod wheel in {keep}: delete it and run again")
    return wheel_file
