"""A checkpoint's files: written beside the last one, which stays whole until they are on disk.

A checkpoint is a folder ``PATH/00000007``, the seventh that was saved there:

- ``common.pt``: what all ranks have in common, in the framework's own format, by one rank;
- ``rank0.npz``, ``rank1.npz``, ...: what is each rank's own, as numpy's arrays;
- ``manifest.json``: their sizes and SHA-256, and who votes. It comes last, by a rename, once all
  files of all ranks are on disk: with it the folder is a checkpoint, without it nothing.

Ranks may share PATH or each have their own, on their nodes' disks: each then finds its own files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hvd_sign.errors import CheckpointError

FORMAT = "hvd_sign checkpoint"
VERSION = 1
COMMON = "common.pt"
MANIFEST = "manifest.json"

Arrays = Mapping[str, npt.NDArray[Any]]
Record = dict[str, Any]
"""A file's ``"bytes"`` and ``"sha256"``."""


def rank_file(rank: int) -> str:
    """The name of a rank's own file."""
    return f"rank{rank}.npz"


class Folder:
    """One checkpoint of those under a path.

    Args:
        path: where checkpoints are saved.
        number: which.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.number = number
        self.place = path / f"{number:08d}"

    def write(self, name: str, dump: Callable[[BinaryIO], None]) -> Record:
        """Writes a file and sees it onto the disk.

        Raises:
            OSError: it cannot be written.
        """
        self.place.mkdir(parents=True, exist_ok=True)
        file = self.place / name
        with file.open("wb") as opened:
            try:
                dump(opened)
            except Exception as error:
                raise _os_error(error) from error  # a writer may cover it
            opened.flush()
            os.fsync(opened.fileno())
        for folder in (self.place, self.place.parent):
            _sync(folder)
        return {"bytes": file.stat().st_size, "sha256": _sha256(file)}

    def read(self, name: str, record: Record) -> bytes:
        """A file's content, which is what was written.

        Raises:
            CheckpointError: it is not there, or is another.
        """
        file = self.place / name
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
        if len(content) != record["bytes"]:
            raise CheckpointError(f"{file}: expected {record['bytes']} bytes, got {len(content)}")
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise CheckpointError(f"{file}: damaged, or of another checkpoint: its SHA-256 differs")
        return content

    def names(self) -> set[str]:
        """The files that are there."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return set(os.listdir(self.place))
        return set()

    def publish(self, rank: int, manifest: Record) -> None:
        """Makes a checkpoint of it, by the first of the ranks that share the path, and no other.

        To be called when the files of all ranks are on disk.

        Raises:
            OSError: the manifest cannot be written; what was there before still holds.
        """
        if self._is_first(rank):
            draft = f"{MANIFEST}.{rank}"
            content = json.dumps(manifest, indent=1).encode()
            self.write(draft, lambda file: _write(file, content))
            os.replace(self.place / draft, self.place / MANIFEST)
            _sync(self.place)

    def remove_older(self, rank: int) -> None:
        """Removes what was saved before, by the first of the ranks that share the path."""
        if self._is_first(rank):
            for number in numbers(self.place.parent):
                if number < self.number:
                    shutil.rmtree(Folder(self.place.parent, number).place, ignore_errors=True)

    def discard(self, names: set[str]) -> None:
        """Removes files of a checkpoint that is not to be."""
        for name in names:
            (self.place / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.place.rmdir()  # the last of the ranks that share it succeeds

    def _is_first(self, rank: int) -> bool:
        return not any(rank_file(other) in self.names() for other in range(rank))


def numbers(path: Path) -> list[int]:
    """Of the folders under a path, whole or not.

    Raises:
        CheckpointError: the path is something else than a folder.
    """
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return sorted(int(name) for name in names if re.fullmatch(r"\d{8}", name))


def manifest_of(ranks: int, files: Mapping[str, Record], voters: Mapping[str, list[int]]) -> Record:
    """What a checkpoint consists of.

    Args:
        ranks: how many saved it.
        files: each one's size and SHA-256.
        voters: by the names of optimizers that vote, the ranks that have something of their own.
    """
    about = {"format": FORMAT, "version": VERSION}
    return {**about, "ranks": ranks, "files": dict(files), "voters": dict(voters)}


def newest(path: Path) -> tuple[int, Record] | None:
    """The number and the manifest of the last checkpoint under a path; None: there is none.

    Raises:
        CheckpointError: its manifest is damaged, or another program's.
    """
    for number in reversed(numbers(path)):
        folder = Folder(path, number)
        if MANIFEST in folder.names():
            return number, _manifest(folder.place / MANIFEST)
    return None


def _manifest(file: Path) -> Record:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{file}: expected the manifest of a {FORMAT}, got something else")
    if found.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: expected version {VERSION} of the format, got {found.get('version')!r}"
        )
    try:
        wanted = {COMMON, *map(rank_file, range(found["ranks"]))}
        sound = found["files"].keys() == wanted and all(
            isinstance(record["bytes"], int) and isinstance(record["sha256"], str)
            for record in found["files"].values()
        )
        sound = sound and isinstance(found["voters"], dict)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise CheckpointError(f"{file}: damaged: it does not say what a checkpoint consists of")
    return found


def dump_arrays(arrays: Arrays) -> Callable[[BinaryIO], None]:
    """What writes arrays to a file."""

    def dump(file: BinaryIO) -> None:
        np.savez(file, **arrays)

    return dump


def load_arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file."""
    with np.load(io.BytesIO(content), allow_pickle=False) as opened:
        return {name: opened[name] for name in opened.files}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _os_error(error: Exception) -> Exception:
    """The error of the operating system behind another one, if there is one."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen if isinstance(seen, Exception) else error
