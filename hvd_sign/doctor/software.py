"""What each node has installed, and whether it fits together."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Mapping
from functools import partial
from importlib import metadata
from typing import Any

from hvd_sign._version import __version__
from hvd_sign.doctor.children import ChildError, Probes
from hvd_sign.doctor.findings import FAILED, OK, SKIPPED, WARNING, Check, Seen

HOROVOD = "0.28.1"
MPI, ENGINE = "MPI library", "engine"
TITLES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
FLAGS = {"torch": "HOROVOD_WITH_PYTORCH=1", "tensorflow": "HOROVOD_WITH_TENSORFLOW=1"}
OLDEST = {"torch": (2, 1), "tensorflow": (2, 15)}
NVIDIA_SECONDS = 20.0


def frameworks() -> list[str]:
    """Those that are installed, by name alone."""
    return [name for name in TITLES if version(name, f"{name}-cpu", f"{name}-gpu") is not None]


def probed(skip: Collection[str]) -> list[str]:
    """What to load: each library that a check asks for which is not left out."""
    checks = {MPI: "mpi4py", ENGINE: "engine", **{TITLES[name]: name for name in frameworks()}}
    return [library for check, library in checks.items() if check not in skip]


def version(*names: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def checks(environment: Mapping[str, str], probes: Probes, there: list[str]) -> list[Check]:
    """What one rank of each node looks at.

    Args:
        environment: of this process.
        probes: of mpi4py, the engine, and the frameworks.
        there: the frameworks.
    """
    return [
        Check("versions", versions),
        Check(MPI, partial(mpi_library, environment, probes)),
        Check(ENGINE, partial(engine, environment, probes)),
        *(Check(TITLES[name], partial(framework, name, probes)) for name in there),
        *(Check(f"Horovod, {TITLES[name]}", partial(horovod, name, probes)) for name in there),
        Check("GPUs", partial(gpus, environment, probes, there)),
    ]


def versions() -> Seen:
    """Of what is installed, from its metadata."""
    names = ("numpy", "mpi4py", "horovod", "keras", "triton")
    found = {name: version(name) for name in names}
    words = [f"{name} {number}" for name, number in found.items() if number is not None]
    return Seen(OK, ", ".join([f"hvd_sign {__version__}", *words]))


def mpi_library(environment: Mapping[str, str], probes: Probes) -> Seen:
    """The MPI that mpi4py runs on, and whether the launcher is of the same kind."""
    try:
        library = probes["mpi4py"]["library"]
    except ChildError as error:
        remedy = "install an MPI and mpi4py; have the MPI's libraries on the loader's path"
        return Seen(FAILED, f"mpi4py does not load: {error}", f"{remedy} (module load ...)")
    is_open = library.startswith("Open MPI")
    for variable, kind, fits in (
        ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun", is_open or "Spectrum" in library),
        ("MPI_LOCALNRANKS", "the mpiexec of MPICH or one of its kin", not is_open),
    ):
        if variable in environment and not fits:
            remedy = (
                "start the ranks by that MPI's own mpirun, or build mpi4py with the MPI that you "
                "launch by: pip install --no-cache-dir --force-reinstall --no-binary=mpi4py mpi4py"
            )
            return Seen(FAILED, f"mpi4py runs on {library}, but {kind} started it", remedy)
    if environment.get("SLURM_MPI_TYPE", "").startswith("pmix") and "MPICH" in library:
        return Seen(FAILED, f"{library}, but srun speaks PMIx", "srun --mpi=pmi2, or mpiexec")
    return Seen(OK, library)


def engine(environment: Mapping[str, str], probes: Probes) -> Seen:
    """Whether the native engine can be used, which needs mpi4py's MPI and our version."""
    rebuild = "pip install . again, with the mpicxx of mpi4py's MPI on PATH"
    try:
        found = probes["engine"]
    except ChildError as error:
        return Seen(FAILED, f"it does not load: {error}", rebuild)
    if not found["built"]:
        return Seen(WARNING, "it was not built: votes go through mpi4py, and are slower", rebuild)
    if "refused" in found:
        return Seen(FAILED, f"votes go through mpi4py instead: {found['refused']}", rebuild)
    unused = "; HVD_SIGN_ENGINE=python does without it"
    here = f"native, {found['version']}, on mpi4py's MPI"
    return Seen(OK, here + unused * (environment.get("HVD_SIGN_ENGINE") == "python"))


def framework(name: str, probes: Probes) -> Seen:
    """Whether a framework loads, and is new enough."""
    try:
        found = probes[name]
    except ChildError as error:
        return Seen(FAILED, f"it does not load: {error}", f"python -c 'import {name}' has to run")
    oldest = OLDEST[name]
    if tuple(int(part) for part in found["version"].split(".")[:2]) < oldest:
        needed = ".".join(map(str, oldest))
        return Seen(FAILED, found["version"], f"pip install '{name}>={needed}'")
    cuda = found["gpus"]["built"]
    nccl = found["gpus"]["nccl"]
    words = [found["version"], f"CUDA {cuda}" if cuda else "without CUDA"]
    return Seen(OK, ", ".join([*words, *([f"NCCL {nccl}"] if nccl else [])]))


def horovod(name: str, probes: Probes) -> Seen:
    """What Horovod was built with for a framework, and by which MPI."""
    if version("horovod") is None:
        return Seen(SKIPPED, "not installed: votes run on hvd_sign's own MPI runtime")
    try:
        found = probes[name]["horovod"]
        gpus_seen = probes[name]["gpus"]["seen"]
    except ChildError:
        return Seen(SKIPPED, f"needs {TITLES[name]}")
    rebuild = (
        f"{FLAGS[name]} HOROVOD_WITH_MPI=1 pip install --no-build-isolation --no-cache-dir "
        f"--force-reinstall --no-deps horovod=={HOROVOD}"
    )
    if "error" in found:
        runtime = "votes run on hvd_sign's own MPI runtime"
        return Seen(WARNING, f"{found['error']}; {runtime}", rebuild)
    built = [word for word, there in found["built"].items() if there]
    said = f"{version('horovod')}, built with {', '.join(built) or 'nothing'}"
    if "mpi" not in built:
        return Seen(FAILED, f"{said}, without MPI, which votes go through", rebuild)
    other = _another_mpi(found["loaded"], probes)
    if other is not None:
        return Seen(FAILED, f"{said}, {other}", rebuild)
    if gpus_seen and "nccl" not in built:
        remedy = f"HOROVOD_GPU_OPERATIONS=NCCL {rebuild}"
        return Seen(WARNING, f"{said}: dense operations on GPUs pass through MPI", remedy)
    return Seen(OK, said)


def _another_mpi(loaded: list[str], probes: Probes) -> str | None:
    """Says so, where Horovod loads other MPI libraries than mpi4py."""
    try:
        mine = probes["mpi4py"]["loaded"]
    except ChildError:
        return None
    if not mine or not loaded or set(mine) == set(loaded):
        return None
    return f"loads {', '.join(loaded)}, but mpi4py {', '.join(mine)}"


def gpus(environment: Mapping[str, str], probes: Probes, names: list[str]) -> Seen:
    """Whether the frameworks see the GPUs that there are."""
    there = _nvidia()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    seen: dict[str, Any] = {}
    for name in names:
        try:
            seen[name] = probes[name]["gpus"]
        except ChildError:
            continue
    said = [f"{TITLES[name]} sees {found['seen']}" for name, found in seen.items()]
    if visible is not None:
        said.append(f"CUDA_VISIBLE_DEVICES={visible}")
    if there == 0 and not any(found["seen"] for found in seen.values()):
        return Seen(OK, ", ".join(["none", *said[len(seen) :]]))
    found = ", ".join([f"{there} here", *said])
    blind = [name for name, gpu in seen.items() if not gpu["seen"] and visible not in ("", "-1")]
    if blind:
        name = blind[0]
        remedy = (
            f"install a {TITLES[name]} built with CUDA"
            if not seen[name]["built"]
            else f"CUDA {seen[name]['built']} needs a newer driver, or apptainer exec --nv"
        )
        return Seen(WARNING, f"{found}: {TITLES[name]} uses none", remedy)
    return Seen(OK, found)


def _nvidia() -> int:
    """How many GPUs the driver shows."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SECONDS, check=False
    )
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
