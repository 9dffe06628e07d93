"""hvd_sign's compiled modules. They lie in the sources, where all environments of a Python find
them; so what they were made from is remembered beside the environments, not in one of them."""

from __future__ import annotations

import sysconfig
from pathlib import Path


class Compiled:
    """The modules that were compiled for this Python.

    Args:
        package: the folder that they lie in.
        build: the folder to remember them in.
    """

    def __init__(self, package: Path, build: Path) -> None:
        self.package = package
        self.suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
        self.file = build / f"compiled{self.suffix}.txt"

    def modules(self) -> list[Path]:
        """Returns those that are there."""
        return sorted(self.package.glob(f"*{self.suffix}"))

    def fresh(self, key: str) -> bool:
        """True if they were made from what has this key, and all of them are still there."""
        kept = self.file.read_text().split() if self.file.exists() else []
        return kept[:1] == [key] and kept[1:] == [path.name for path in self.modules()] != []

    def remove(self) -> None:
        """Removes them: they may be newer than their sources, but made for another MPI."""
        self.file.unlink(missing_ok=True)
        for module in self.modules():
            module.unlink()

    def finish(self, key: str) -> None:
        """Remembers that those that are there were made from what has this key."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n".join([key, *(path.name for path in self.modules()), ""]))
