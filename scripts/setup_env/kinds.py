"""The environments that the set-up can make, and what each is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch"
COMMON_PINS = "constraints.txt"
BUILD_TOOLS = ("setuptools", "wheel", "packaging", "nanobind")
HOROVOD_NEEDS = ("cmake", "ninja", "numpy", "cloudpickle", "psutil", "pyyaml", "cffi")


@dataclass(frozen=True)
class Kind:
    """An environment.

    Attributes:
        folder: of the repository that it lies in.
        own_pins: the file whose pins replace those of constraints.txt; empty: there is none.
        horovod: whether Horovod is built for it.
        extras: of hvd_sign that are installed.
        tensorflow_until: the newest Python, as in (3, 11), that its TensorFlow runs on; None: any
            that serves.
    """

    folder: str
    own_pins: str
    horovod: bool
    extras: str
    tensorflow_until: tuple[int, int] | None

    @property
    def needs(self) -> tuple[str, ...]:
        """What pip installs before Horovod and hvd_sign are built, frameworks not counted."""
        return BUILD_TOOLS + (HOROVOD_NEEDS if self.horovod else ())

    def pin_files(self, root: Path) -> list[Path]:
        """Returns the files with its pins, those that win last."""
        return [root / name for name in (COMMON_PINS, self.own_pins) if name]

    def tensorflow(self, python: tuple[int, int], processor: str) -> str | None:
        """Returns the package to install as TensorFlow; None where its version has no file."""
        if self.tensorflow_until is not None and python > self.tensorflow_until:
            return None
        return "tensorflow-cpu" if processor == "x86_64" else "tensorflow"


KINDS = {
    "main": Kind(".venv", "", True, "dev,bench", (3, 11)),
    "keras3": Kind(".venv-keras3", "constraints-keras3.txt", False, "test,bench", None),
}


def pinned(line: str) -> str:
    """Returns the name of the package that a line of constraints pins; empty if it pins none."""
    match = re.match(r"[\w.-]+", line)
    return match[0] if match else ""


def constraints(files: list[Path], torch: str) -> str:
    """Returns the pins to install by.

    Args:
        files: with pins; what a later file pins, the earlier ones do not.
        torch: what pip is to install as PyTorch; another than ``"torch"`` is pinned by no file.
    """
    chosen: list[str] = []
    for file in files:
        own = file.read_text().splitlines()
        chosen = [line for line in chosen if pinned(line) not in {*map(pinned, own), ""}] + own
    return "".join(f"{line}\n" for line in chosen if torch == TORCH or pinned(line) != TORCH)
