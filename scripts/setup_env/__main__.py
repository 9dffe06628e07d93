"""Starts the set-up under a Python that serves; any from 3.6 on can read this file."""

import os
import shutil
import subprocess
import sys

SUPPORTED = ((3, 10), (3, 11), (3, 12))
BEST_FIRST = ("python3.11", "python3.12", "python3.10")


def usable(path: str) -> bool:
    """True if this Python starts (a version manager's stub may not) and can make environments."""
    probe = [path, "-c", "import venv, ensurepip"]
    with open(os.devnull, "w") as nowhere:
        return subprocess.call(probe, stdout=nowhere, stderr=nowhere) == 0


def interpreter():  # type: () -> str | None
    """Returns the Python to go on with: this one, the one behind a venv, or another on PATH."""
    if sys.version_info[:2] in SUPPORTED:
        # Not the Python of a venv: that may be the very one to be made again.
        return str(getattr(sys, "_base_executable", sys.executable))
    for name in BEST_FIRST:
        path = shutil.which(name)
        if path and usable(path):
            return path
    return None


def start(arguments):  # type: (list[str]) -> int
    """Runs the set-up and returns its exit status."""
    python = interpreter()
    if python is None:
        print(
            f"set-up: Python 3.10, 3.11 or 3.12 is needed, this is {sys.version.split()[0]}, and "
            "there is no other on PATH: install one and name it, as in "
            "`make test PYTHON=python3.11`",
            file=sys.stderr,
        )
        return 1
    if python != sys.executable:
        os.execv(python, [python, "-m", "scripts.setup_env", *arguments])
    from scripts.setup_env.steps import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
