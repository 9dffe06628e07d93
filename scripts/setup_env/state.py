"""What has been made already: which steps are done, and from what."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.setup_env.errors import SetupError

FILE = "hvd_sign_setup.json"


def digest(*parts: object) -> str:
    """Returns a short key of everything that a step depends on; files count by their contents."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            content = part.read_bytes() if part.is_file() else b""
            total.update(f"{part.name} {len(content)}\n".encode() + content)
        else:
            total.update(f"{part!r}\n".encode())
    return total.hexdigest()[:16]


@contextmanager
def lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Lets one set-up at a time work here; ``waiting`` is called if another one does."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class State:
    """The steps that are done in an environment, kept in a file inside it.

    A step that was cut off while it changed the environment may have left a package half
    installed, which pip takes for whole: then the environment is made again.

    Args:
        venv: the environment's folder.

    Raises:
        SetupError: the folder is there, but no set-up made it.
    """

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.file = venv / FILE
        self.done: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        if not self.file.exists():
            if venv.exists() and any(venv.iterdir()):
                raise SetupError(
                    f"{venv} is an environment that this set-up did not make: move it away or "
                    "delete it, and run again"
                )
            return
        try:
            kept = json.loads(self.file.read_text())
        except ValueError:
            kept = {"busy": "unreadable"}
        if kept.get("busy") is None:
            self.done, self.notes = kept["done"], kept["notes"]

    def fresh(self, step: str, key: str) -> bool:
        """True if the step was done, and from the same things."""
        return self.done.get(step) == key

    def finish(self, step: str, key: str) -> None:
        """Records that a step is done."""
        self.done[step] = key
        self._save(None)

    def note(self, name: str, value: str) -> None:
        """Keeps a fact for later runs."""
        self.notes[name] = value
        self._save(None)

    def empty(self) -> None:
        """Removes the environment, and leaves an empty folder that is known to be ours."""
        if self.venv.exists():
            self._save("emptying")
            for entry in self.venv.iterdir():
                if entry == self.file:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        self.done = {}
        self.notes = {}
        self._save(None)

    @contextmanager
    def changing(self, step: str) -> Iterator[None]:
        """Marks that the environment is being changed; a program that fails leaves it whole."""
        self._save(step)
        try:
            yield
        except SetupError:
            self._save(None)
            raise
        self._save(None)

    def _save(self, busy: str | None) -> None:
        self.venv.mkdir(exist_ok=True)
        new = self.file.with_suffix(".new")
        kept = {"busy": busy, "done": self.done, "notes": self.notes}
        new.write_text(json.dumps(kept, indent=1))
        os.replace(new, self.file)
