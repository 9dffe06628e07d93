"""What the machine has: a C++ compiler, Python's headers, and root's right to install packages."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.setup_env.errors import SetupError
from scripts.setup_env.progress import Progress

COMPILERS = ("c++", "g++", "clang++")
CPP17 = "#include <optional>\nint main() { if (std::optional<int> x{0}; x) return *x; }\n"
DATASET = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command line and the first line of what it says of itself."""

    command: str
    version: str


def root_installs() -> bool:
    """True if packages can be installed: this is root on Debian, Ubuntu or a relative."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def output(argv: Iterable[str]) -> str:
    """Returns what a short program prints; empty if it does not start or does not end."""
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout or done.stderr).strip()


def first_line(argv: Iterable[str]) -> str:
    """Returns the first line that a short program prints."""
    return output(argv).partition("\n")[0]


def compiler(env: Mapping[str, str]) -> Compiler:
    """Returns the C++ compiler: the one that CXX names, else the first of the usual names.

    Raises:
        SetupError: there is none.
    """
    named = shlex.split(env.get("CXX", ""))
    for candidate in [named] if named else [[name] for name in COMPILERS]:
        path = shutil.which(candidate[0], path=env.get("PATH"))
        if path is not None:
            version = first_line([path, *candidate[1:], "--version"])
            return Compiler(shlex.join(candidate), version)
    if named:
        raise SetupError(f"CXX names the C++ compiler {named[0]!r}, which is not there: mend CXX")
    raise SetupError(
        "no C++ compiler is on PATH: install one (Debian, Ubuntu: `apt-get install g++`), or name "
        "it in CXX"
    )


def compiles(command: Iterable[str], source: str, program: Path) -> str | None:
    """Compiles and links one file of C++.

    Returns:
        what the compiler said if it failed; None if the program is made.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "probe.cpp")
        file.write_text(source)
        try:
            done = subprocess.run(
                [*command, "-std=c++17", str(file), "-o", str(program)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
        except OSError as error:
            return str(error)
    return (done.stderr.strip() or "it failed") if done.returncode else None


def require_cpp17(found: Compiler) -> None:
    """Raises SetupError if the compiler cannot build a C++17 program."""
    with tempfile.TemporaryDirectory() as folder:
        said = compiles(shlex.split(found.command), CPP17, Path(folder, "probe"))
    if said is not None:
        raise SetupError(
            f"the compiler {found.command} ({found.version}) cannot build a C++17 program: install "
            "GCC 9, Clang 9 or newer, or name another one in CXX",
            said,
        )


def missing_python_parts() -> list[str]:
    """Returns what this Python lacks: "venv module", "headers", both or neither."""
    lacks = []
    if subprocess.call([sys.executable, "-c", "import venv, ensurepip"], stderr=subprocess.DEVNULL):
        lacks.append("venv module")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacks.append("headers")
    return lacks


def python_packages(lacks: Iterable[str]) -> list[str]:
    """Returns the Debian packages that bring the missing parts to Debian's own Python."""
    name = f"python3.{sys.version_info[1]}"
    suffix = {"venv module": "venv", "headers": "dev"}
    return [f"{name}-{suffix[part]}" for part in lacks]


def complete_python(progress: Progress) -> None:
    """Sees to it that this Python can make environments and compile extensions.

    Raises:
        SetupError: it cannot, and this user cannot install what is missing.
    """
    lacks = missing_python_parts()
    if not lacks:
        return
    packages = python_packages(lacks)
    if root_installs() and sys.base_prefix == "/usr":
        apt_install(progress, packages)
        lacks = missing_python_parts()
    if lacks:
        raise SetupError(
            f"Python {platform.python_version()} at {sys.executable} lacks its "
            f"{' and its '.join(lacks)}: install {' '.join(packages)} as root (Debian, Ubuntu), or "
            "name another Python, as in `make test PYTHON=python3.11`"
        )


def apt_install(progress: Progress, packages: Iterable[str]) -> None:
    """Installs Debian packages, asking nothing.

    Raises:
        SetupError: they could not be installed.
    """
    wanted = list(packages)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300"]
    progress.note(f"apt-get install {' '.join(wanted)}")
    try:
        progress.run("apt-get update", [*apt, "update"], env)
    except SetupError as error:  # one stale source among many; the packages may still be known
        progress.note(f"apt-get update: {error}")
    install = [*apt, "install", "--no-install-recommends", *wanted]
    progress.run(f"installing {' '.join(wanted)}", install, env)


def jobs() -> int:
    """Returns how many compilers to run at once: one a core, and 2 GiB of memory for each."""
    cores = len(os.sched_getaffinity(0))
    free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return max(1, min(cores, int(free[1]) >> 21 if free else cores))
