"""Checkpoints that ranks save and load together: what is common once, and what is each rank's own.

What is raised on one rank is the same ``CheckpointError`` on all of them, and what was there before
a call that fails is there after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import Algorithm
from hvd_sign.core.agreement import disagreement, ranks_text, reason
from hvd_sign.errors import CheckpointError, CheckpointNotFoundError, DisagreementError
from hvd_sign.runtime import checkpoint_files as files
from hvd_sign.runtime.checkpoint_files import Folder
from hvd_sign.runtime.resizing import joining, resized, rule_of

T = TypeVar("T")
Arrays = Mapping[str, npt.NDArray[Any]]

SAVE, LOAD = "save_checkpoint", "load_checkpoint"
PIECE = 2**20
"""Coordinates of all old ranks that are exchanged at a time."""


@dataclass(frozen=True)
class Ranks:
    """The ranks that save or load together.

    Attributes:
        rank: this one's number.
        gather: every rank's object, in order of ranks; collective.
        broadcast: one rank's object, by its number; collective.
    """

    rank: int
    gather: Callable[[Any], list[Any]]
    broadcast: Callable[[Any, int], Any]

    def together(self, call: str, work: Callable[[], T]) -> list[T]:
        """What some work yields on each rank. Collective.

        Raises:
            CheckpointError: on all ranks alike: it failed on one.
            DisagreementError: on all ranks alike: they differ in the call.
        """
        failed, made = None, None
        try:
            made = work()
        except Exception as error:  # whatever it is, the others would wait for this rank
            failed = error
        told = self.gather((call, None if failed is None else reason(failed), made))
        sentence = disagreement("checkpoint", [{"call": theirs} for theirs, _, _ in told])
        if sentence is not None:
            raise DisagreementError(sentence)
        ranks = [rank for rank, (_, why, _) in enumerate(told) if why is not None]
        if ranks:
            why = told[ranks[0]][1]
            raise CheckpointError(f"{call}: failed on {ranks_text(ranks)}: {why}") from failed
        return [theirs for _, _, theirs in told]


def save(
    ranks: Ranks,
    path: Path,
    take: Callable[[], tuple[Any, dict[str, Arrays]]],
    dump: Callable[[list[Any]], Callable[[BinaryIO], None]],
) -> None:
    """Saves a checkpoint in the place of the last one under a path. Collective.

    Args:
        ranks: all of them.
        path: a folder, which ranks may share.
        take: what a rank tells all others, and, by the names of optimizers that vote on it, the
            arrays that are its own.
        dump: of what all ranks tell, makes what writes the common file; called on rank 0.

    Raises:
        CheckpointError: on all ranks alike: one of them failed; the last checkpoint still holds.
    """
    own: dict[str, Arrays] = {}

    def prepare() -> tuple[int, Any, list[str]]:
        about, taken = take()
        own.update(taken)
        return max(files.numbers(path), default=0), about, sorted(own)

    told = ranks.together(SAVE, prepare)
    folder = Folder(path, 1 + max(number for number, _, _ in told))
    flat = {f"{name}/{key}": array for name, part in own.items() for key, array in part.items()}
    writers = {files.rank_file(ranks.rank): files.dump_arrays(flat)}
    if ranks.rank == 0:
        writers[files.COMMON] = dump([about for _, about, _ in told])

    def write() -> dict[str, files.Record]:
        return {name: folder.write(name, writer) for name, writer in writers.items()}

    try:
        records = ranks.together(SAVE, write)
    except CheckpointError:
        folder.discard(set(writers))
        raise
    everything = {name: record for theirs in records for name, record in theirs.items()}
    voters = _voters([theirs for _, _, theirs in told])
    manifest = files.manifest_of(len(told), everything, voters)
    ranks.together(SAVE, lambda: folder.publish(ranks.rank, manifest))
    folder.remove_older(ranks.rank)


class Loaded(NamedTuple):
    """What a rank has read.

    Attributes:
        file: the common one, for messages.
        common: its content.
        own: by the names of optimizers that voted when it was saved and that vote on this rank now,
            their arrays, made to fit where the ranks that vote are others now.
        refitted: by those names, how many vote now, where they are others.
    """

    file: Path
    common: bytes
    own: dict[str, dict[str, npt.NDArray[Any]]]
    refitted: dict[str, int]


def load(ranks: Ranks, path: Path, voting: Mapping[str, Algorithm]) -> Loaded:
    """Reads the last checkpoint under a path, and sees that it is sound. Collective.

    Args:
        ranks: all of them.
        path: a folder, which ranks may share.
        voting: by the names of optimizers that vote on this rank, their algorithms.

    Raises:
        CheckpointError: on all ranks alike: there is none, or one of its files is not there or
            damaged on one rank.
    """
    told = ranks.together(LOAD, lambda: (files.newest(path), sorted(voting)))
    number, manifest = _chosen(path, [found for found, _ in told])
    folder = Folder(path, number)
    seen = ranks.together(LOAD, lambda: folder.names() & manifest["files"].keys())
    now = _voters([names for _, names in told])
    now = {name: members for name, members in now.items() if name in manifest["voters"]}
    others = {name for name, members in now.items() if members != manifest["voters"][name]}
    readers = {files.COMMON: _seers(folder, files.COMMON, seen)[0]}
    if others:  # every old rank's file is read by some rank that sees it, in turn
        for rank in range(manifest["ranks"]):
            seers = _seers(folder, files.rank_file(rank), seen)
            readers[files.rank_file(rank)] = seers[rank % len(seers)]
    mine = {name for name, reader in readers.items() if reader == ranks.rank}
    if now.keys() & voting.keys():
        mine.add(files.rank_file(ranks.rank))
    mine &= manifest["files"].keys()  # a new rank has none

    contents: dict[str, bytes] = {}
    parts: dict[str, Arrays] = {}

    def read() -> None:
        for name in sorted(mine):
            contents[name] = folder.read(name, manifest["files"][name])
        parts.update({n: files.load_arrays(c) for n, c in contents.items() if n != files.COMMON})

    ranks.together(LOAD, read)
    common = ranks.broadcast(contents.get(files.COMMON, b""), readers[files.COMMON])
    own = {}
    for name in sorted(now):
        kept = {
            rank: _part(parts[file], name)
            for rank in manifest["voters"][name]
            if (file := files.rank_file(rank)) in parts
        }
        if name not in others:
            if name in voting:
                own[name] = kept[ranks.rank]
            continue
        given = [kept[r] for r in sorted(kept) if readers[files.rank_file(r)] == ranks.rank]
        made = exchanged(ranks, given, voting.get(name), len(now[name]))
        if name in voting:
            own[name] = made
    return Loaded(
        folder.place / files.COMMON, common, own, {name: len(now[name]) for name in others}
    )


def exchanged(
    ranks: Ranks, parts: Sequence[Arrays], algorithm: Algorithm | None, voters: int
) -> dict[str, npt.NDArray[Any]]:
    """What each rank goes on from, of the arrays of others; in pieces. Collective.

    Args:
        ranks: all of them.
        parts: arrays of old ranks, by plane and ordinal, such as ``"momentum/3"``; those that one
            of them has not are zeros.
        algorithm: whose; None on a rank that has no use for them.
        voters: how many go on from them; 0: this one joins others, who keep theirs.
    """
    layouts = [{key: (a.size, a.dtype.str) for key, a in part.items()} for part in parts]
    everywhere = {
        k: v for theirs in ranks.gather(layouts) for part in theirs for k, v in part.items()
    }
    made = {}
    for key, (size, dtype) in sorted(everywhere.items()):
        whole = [part.get(key, np.zeros(size, dtype)) for part in parts]
        pieces = []
        for begin in range(0, max(size, 1), PIECE):
            piece = [array[begin : begin + PIECE] for array in whole]
            rows = [row for theirs in ranks.gather(piece) for row in theirs]
            if algorithm is not None:
                rule = rule_of(algorithm, key.partition("/")[0])
                pieces.append(resized(rule, rows, voters) if voters else joining(rule, rows))
        if algorithm is not None:
            made[key] = np.concatenate(pieces)
    return made


def _voters(names: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """By the names of optimizers, the ranks on which they vote; of each rank's names."""
    return {
        name: [rank for rank, theirs in enumerate(names) if name in theirs]
        for name in sorted({name for theirs in names for name in theirs})
    }


def _chosen(path: Path, found: Sequence[tuple[int, files.Record] | None]) -> tuple[int, Any]:
    """The number and manifest of the newest checkpoint that any rank finds.

    Where some ranks have only an older one the job ended while manifests were written, and so when
    all files of the newest were on disk.

    Raises:
        CheckpointError: there is none, or ranks find several of one number.
    """
    number = max((kept[0] for kept in found if kept is not None), default=0)
    if not number:
        raise CheckpointNotFoundError(f"{LOAD}: no rank finds a checkpoint in {path}")
    theirs = {r: kept[1] for r, kept in enumerate(found) if kept is not None and kept[0] == number}
    first, manifest = next(iter(theirs.items()))
    for rank, other in theirs.items():
        if other != manifest:
            raise CheckpointError(
                f"{LOAD}: {Folder(path, number).place / files.MANIFEST}: expected one checkpoint, "
                f"got another on rank {rank} than on rank {first}"
            )
    return number, manifest


def _seers(folder: Folder, name: str, seen: Sequence[Set[str]]) -> list[int]:
    """The ranks that see a file. Raises CheckpointError: none does."""
    seers = [rank for rank, theirs in enumerate(seen) if name in theirs]
    if not seers:
        raise CheckpointError(f"{LOAD}: {folder.place / name}: no rank finds it")
    return seers


def _part(arrays: Arrays, name: str) -> dict[str, npt.NDArray[Any]]:
    """An optimizer's arrays of those in a rank's file."""
    prefix = f"{name}/"
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
