"""Checkpoints that cannot be written or read: one error on all ranks, and all is as it was."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from additions.feedback import Feedback
from helpers import backward, gradients
from jobs import Job, Model, equal, errors

from hvd_sign.errors import CheckpointError, DisagreementError

COMMON, MANIFEST = "common.pt", "manifest.json"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def replace(key: str, value):
    def change(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


LAST = "rank{last}.npz"
DAMAGE = {
    "a rank's file cut": (LAST, cut, "rank{last}.npz: expected \\d+ bytes, got \\d+"),
    "a bit of a rank's file": (LAST, flip, "rank{last}.npz: damaged, or of another checkpoint"),
    "a rank's file missing": (LAST, Path.unlink, "rank{last}.npz: cannot be read: No such file"),
    "the common file cut": (COMMON, cut, "common.pt: expected \\d+ bytes"),
    "a bit of the common file": (COMMON, flip, "common.pt: damaged"),
    "the common file missing": (COMMON, Path.unlink, "common.pt: no rank finds it"),
    "the manifest cut": (MANIFEST, cut, "manifest.json: damaged: "),
    "a foreign manifest": (
        MANIFEST,
        lambda file: file.write_text('{"name": "a web app"}'),
        "manifest.json: expected the manifest of a hvd_sign checkpoint",
    ),
    "no object": (MANIFEST, lambda file: file.write_text("[]"), "expected the manifest of a"),
    "a later format": (MANIFEST, replace("version", 2), "expected version 1 of the format, got 2"),
    "a manifest without files": (MANIFEST, replace("files", {}), "it does not say what"),
    "no manifest": (MANIFEST, Path.unlink, "no rank finds a checkpoint in "),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage(hvd, world, shared, what):
    """One error on all ranks, which names file and rank; all is as it was, and goes on."""
    last = world.size - 1
    name, damage, message = DAMAGE[what]
    job, twin = Job(hvd), Job(hvd)
    for each in (job, twin):
        each.train(world.rank, range(2))
    hvd.save_checkpoint(shared, **job.things)
    for each in (job, twin):
        each.train(world.rank, range(2, 3))
    before = job.all_state()
    world.Barrier()
    if world.rank == 0:
        damage(shared / "00000001" / name.format(last=last))
    world.Barrier()
    with pytest.raises(CheckpointError, match=message.format(last=last)):
        hvd.load_checkpoint(shared, **job.things)
    told = errors(world, lambda: hvd.load_checkpoint(shared, **job.things))
    assert told.startswith("load_checkpoint: ")
    if name == LAST:
        assert told.startswith(f"load_checkpoint: failed on rank {last}: {shared}/00000001/rank")
    assert equal(job.all_state(), before)
    for each in (job, twin):
        each.train(world.rank, range(3, 5))
    assert equal(job.all_state(), twin.all_state())


@pytest.mark.ranks(2)
def test_a_file_of_another_checkpoint(hvd, world, shared):
    job = Job(hvd)
    for folder, turns in (("a", range(1)), ("b", range(1, 2))):
        job.train(world.rank, turns)
        hvd.save_checkpoint(shared / folder, **job.things)
    world.Barrier()
    if world.rank == 0:
        shutil.copy(shared / "a/00000001/rank1.npz", shared / "b/00000001/rank1.npz")
    world.Barrier()
    told = errors(world, lambda: hvd.load_checkpoint(shared / "b", **job.things))
    assert "failed on rank 1: " in told
    assert "b/00000001/rank1.npz: damaged, or of another checkpoint" in told


@pytest.mark.ranks(2)
def test_paths_of_several_jobs(hvd, world, shared):
    for name in "ab":
        hvd.save_checkpoint(shared / name, Model(), epoch=name)
    folder = shared / ("a" if world.rank == 0 else "b")
    with pytest.raises(CheckpointError, match="one checkpoint, got another on rank 1 than on rank"):
        hvd.load_checkpoint(folder, Model())


def test_files_of_a_save_that_did_not_end_are_no_checkpoint(hvd, world, path):
    """Where manifests came to some nodes alone, all files were on disk everywhere."""
    job = Job(hvd)
    job.train(world.rank, range(1))
    hvd.save_checkpoint(path, **job.things, number=1)
    (path / "00000002").mkdir(exist_ok=True)
    (path / "00000002" / f"rank{world.rank}.npz").write_bytes(b"half")
    world.Barrier()
    assert hvd.load_checkpoint(path, **job.things) == {"number": 1}
    world.Barrier()
    hvd.save_checkpoint(path, **job.things, number=3)
    world.Barrier()
    assert os.listdir(path) == ["00000003"]
    if world.rank:
        (path / "00000003" / MANIFEST).unlink(missing_ok=not path.name.startswith("of"))
    world.Barrier()
    if path.name.startswith("of") or world.size == 1:
        assert hvd.load_checkpoint(path, **job.things) == {"number": 3}


class Refusing:
    """Something with a state, which one rank cannot load."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.value = 0

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]
        if self.refuses and self.value == 1:
            raise KeyError("one thing")


def test_what_fits_everywhere_but_on_one_rank(hvd, world, shared):
    """Nothing is half loaded, on any rank."""
    job, last = Job(hvd), Refusing(refuses=world.rank == world.size - 1)
    job.train(world.rank, range(1))
    last.value = 1
    hvd.save_checkpoint(shared, **job.things, last=last)
    job.train(world.rank, range(1, 2))
    last.value = 2
    before = job.all_state()
    told = errors(world, lambda: hvd.load_checkpoint(shared, **job.things, last=last))
    rank = world.size - 1
    assert told == (
        f"load_checkpoint: failed on rank {rank}: {shared}/00000001/common.pt: last: "
        "KeyError: 'one thing'"
    )
    assert last.value == 2
    assert equal(job.all_state(), before)


def test_another_model(hvd, world, shared):
    job = Job(hvd)
    hvd.save_checkpoint(shared, **job.things)
    wide = Model(12)
    before = copy.deepcopy(wide.state_dict())
    told = errors(world, lambda: hvd.load_checkpoint(shared, wide))
    assert "common.pt: model: RuntimeError: Error(s) in loading state_dict" in told
    assert "size mismatch for parts.0" in told
    optimizer = hvd.DistributedOptimizer(hvd.Signum(wide.parameters()))
    told = errors(world, lambda: hvd.load_checkpoint(shared, optimizer=optimizer))
    assert "common.pt: optimizer: expected parameters of shapes [[[64, 10], [10]" in told
    assert "got [[[64, 12], [12], [5000]]]" in told
    assert equal(before, wide.state_dict())


def test_another_algorithm(hvd, world, shared):
    job = Job(hvd, algorithm=Feedback())
    job.train(world.rank, range(1))
    hvd.save_checkpoint(shared, **job.things)
    other = Job(hvd)
    other.train(world.rank, range(1))
    before = other.all_state()
    told = errors(world, lambda: hvd.load_checkpoint(shared, optimizer=other.optimizer))
    assert "expected that of Signum(beta=0.9)" in told
    assert equal(before, other.all_state())


def full_disk(monkeypatch, when: int) -> None:
    """Lets the ``when``-th look whether a file is on the disk find that disk full."""
    calls, real = [], os.fsync

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == when:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("when", [1, 3])
def test_a_full_disk(hvd, world, path, monkeypatch, when):
    """On one rank: the same error on all, which names it; the old checkpoint holds."""
    job, last = Job(hvd), world.size - 1
    job.train(world.rank, range(1))
    hvd.save_checkpoint(path, **job.things, number=1)
    with monkeypatch.context() as patched:
        if world.rank == last:
            full_disk(patched, when)
        told = errors(world, lambda: hvd.save_checkpoint(path, **job.things, number=2))
    wanted = f"save_checkpoint: failed on rank {last}: OSError: [Errno 28] No space left on device"
    assert told == wanted
    world.Barrier()
    assert os.listdir(path) == ["00000001"]
    assert hvd.load_checkpoint(path, **job.things) == {"number": 1}
    world.Barrier()
    hvd.save_checkpoint(path, **job.things, number=3)
    assert hvd.load_checkpoint(path, **job.things) == {"number": 3}


def test_a_disk_that_is_full_for_the_manifest(hvd, world, path, monkeypatch):
    """Where the other ranks' manifests are on disks of their own, all files are: it is the new."""
    job = Job(hvd)
    hvd.save_checkpoint(path, **job.things, number=1)
    with monkeypatch.context() as patched:
        if world.rank == 0:
            full_disk(patched, 7)  # after three for each of its two files
        told = errors(world, lambda: hvd.save_checkpoint(path, **job.things, number=2))
    assert told == "save_checkpoint: failed on rank 0: OSError: [Errno 28] No space left on device"
    world.Barrier()
    holds = 1 if world.size == 1 or path.name == "all" else 2
    assert hvd.load_checkpoint(path, **job.things) == {"number": holds}


def test_a_file_that_the_system_does_not_let_grow(hvd, world, path):
    """A real error of write(), in the middle of a file, through numpy's and PyTorch's writers."""
    job = Job(hvd)
    job.train(world.rank, range(1))
    hvd.save_checkpoint(path, **job.things, number=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == world.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        told = errors(world, lambda: hvd.save_checkpoint(path, **job.things, number=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    rank = world.size - 1
    assert told == f"save_checkpoint: failed on rank {rank}: OSError: [Errno 27] File too large"
    world.Barrier()
    assert os.listdir(path) == ["00000001"]
    assert hvd.load_checkpoint(path, **job.things) == {"number": 1}
    world.Barrier()


def test_what_cannot_be_saved(hvd, world, shared):
    job = Job(hvd)
    told = errors(world, lambda: hvd.save_checkpoint(shared, job.model, thing=print))
    assert "thing: expected numbers, strings, tensors, and lists" in told
    told = errors(world, lambda: hvd.save_checkpoint(shared, epoch=np.int64(3)))
    assert "epoch: expected numbers, strings" in told
    (shared / f"file {world.rank}").write_text("no folder")
    told = errors(world, lambda: hvd.save_checkpoint(shared / f"file {world.rank}", job.model))
    assert "file 0: cannot be read: Not a directory" in told
    told = errors(world, lambda: hvd.load_checkpoint(shared / "nothing", job.model))
    assert told.startswith("load_checkpoint: no rank finds a checkpoint in ")
    with pytest.raises(FileNotFoundError, match="no rank finds a checkpoint in "):
        hvd.load_checkpoint(shared / "nothing", job.model)
    backward(job.params, gradients(world.rank, job.params))
    told = errors(world, lambda: hvd.save_checkpoint(shared, **job.things))
    assert "AssertionError: state: expected to be asked between steps" in told
    job.optimizer.step()
    hvd.save_checkpoint(shared, **job.things)
    backward(job.params, gradients(world.rank, job.params))
    told = errors(world, lambda: hvd.load_checkpoint(shared, **job.things))
    assert "load_state_dict() was called after loss.backward()" in told
    job.optimizer.step()


@pytest.mark.ranks(2)
def test_one_saves_and_another_loads(hvd, world, shared):
    call = hvd.save_checkpoint if world.rank else hvd.load_checkpoint
    with pytest.raises(DisagreementError) as raised:
        call(shared, Model())
    assert str(raised.value).startswith(
        "checkpoint: call differs between ranks: load_checkpoint on"
    )
