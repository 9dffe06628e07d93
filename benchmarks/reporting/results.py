"""Result directories: raw figures in one JSON file, with all that one needs to judge them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import textwrap
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import psutil

from benchmarks.emulation.launch import mpi_version
from benchmarks.errors import BenchError

SCHEMA_VERSION = 2
FILE = "result.json"
SCHEMA = Path(__file__).with_name("result.schema.json")  # what tables, plots and pages rely on
MESSAGE_WIDTH = 200
# By the names of their modules, and by those of the packages that bring them.
PACKAGES = {
    **{name: (name,) for name in ("hvd_sign", "torch", "transformers")},
    "tensorflow": ("tensorflow", "tensorflow_cpu"),
    **{name: (name,) for name in ("keras", "horovod", "mpi4py", "numpy")},
}
ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]


class ResultError(BenchError):
    """A result file that is missing, damaged or of another schema; the message is one sentence."""


def create_directory(parent: Path, name: str) -> Path:
    """Makes parent/<date>-<name>, with a number behind it if that exists, and returns it."""
    stem = f"{datetime.date.today().isoformat()}-{re.sub(r'[^A-Za-z0-9.]+', '-', name)}"
    number = 1
    while True:
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def new_result(kind: str) -> Result:
    """The part of a result that is the same for every benchmark.

    Args:
        kind: what was measured: "training" or "allreduce".
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Versions of our code and of everything it was measured with."""
    found = {"python": platform.python_version(), "mpi": mpi_version() or "none"}
    for name, packages in PACKAGES.items():
        found[name] = next(filter(None, map(_version, packages)), "none")
    found["git"] = _git("rev-parse", "HEAD") or "none"
    if _git("status", "--porcelain", "--untracked-files=no"):
        found["git"] += " with changes"
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """The machine, and how busy it was: cores, memory in bytes, load average of one minute."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def save(folder: Path, result: Result) -> Path:
    """Writes result.json and returns its path."""
    path = folder / FILE
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def load(path: Path) -> Result:
    """Reads a result file, or the one in a result directory. Raises ResultError."""
    path = path / FILE if path.is_dir() else path
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultError(f"cannot read {path}: {error}") from error
    version = result.get("schema_version") if isinstance(result, dict) else None
    if version != SCHEMA_VERSION:
        raise ResultError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {version!r}")
    wrong = jsonschema.exceptions.best_match(_validator().iter_errors(result))
    if wrong:
        message = textwrap.shorten(wrong.message, MESSAGE_WIDTH)
        raise ResultError(f"{path}: not the form of a result: {wrong.json_path}: {message}")
    return result


@lru_cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
