"""Arrays for other ranks, by literals; a checkpoint's folder, by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from hvd_sign.algorithms import Algorithm, Lion, OneBit, Signum, make_algorithm
from hvd_sign.errors import CheckpointError, CheckpointNotFoundError, VoteError
from hvd_sign.runtime.checkpoint_files import Folder, dump_arrays, load_arrays, manifest_of, newest
from hvd_sign.runtime.checkpoints import refitted
from hvd_sign.runtime.resizing import joining, resized, rule_of
from hvd_sign.votes import MajorityVote, VoteRule

ROWS = {
    "three": [[1.0, -4.0, 2.0], [2.0, -5.0, -100.0], [6.0, 3.0, 1.0]],
    "two": [[1.0, -4.0, 2.0], [2.0, 3.0, 4.0]],
    "parts": [[1.0, -4.0, 0.0], [0.0, 0.0, -3.0]],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "rule", "ranks", "wanted"),
    [
        ("three", "median", 2, [2.0, -4.0, 1.0]),
        ("three", "mean", 2, [3.0, -2.0, -97 / 3]),
        ("three", "sum", 2, [4.5, -3.0, -48.5]),
        ("two", "median", 3, [1.5, -0.5, 3.0]),
        ("two", "sum", 4, [0.75, -0.25, 1.5]),
        ("parts", "owned", 2, [1.0, -4.0, -3.0]),
    ],
)
def test_resized(rows, rule, ranks, wanted, dtype):
    arrays = [np.array(row, dtype) for row in ROWS[rows]]
    made = resized(rule, arrays, ranks)
    np.testing.assert_array_equal(made, np.array(wanted).astype(dtype), strict=True)


def test_the_medians_sign_is_the_majoritys():
    rng = np.random.default_rng(0)
    arrays = list(rng.standard_normal((5, 1000)).astype(np.float32))
    votes = np.sign(sum(np.sign(array) for array in arrays))
    np.testing.assert_array_equal(np.sign(resized("median", arrays, 3)), votes)


def test_joining():
    arrays = [np.array(row, np.float32) for row in ROWS["three"]]
    assert joining("sum", arrays).tolist() == [0, 0, 0]
    assert joining("owned", arrays).tolist() == [0, 0, 0]
    assert joining("median", arrays).tolist() == [2, -4, 1]
    assert joining("mean", arrays).tolist() == [3, -2, np.float32(-97 / 3)]


def test_no_tensor_is_too_small():
    assert resized("median", [np.zeros(0, np.float32)] * 2, 3).shape == (0,)


@dataclass(frozen=True)
class Kept(Algorithm):
    name = "kept"
    planes = ("momentum", "other")
    feedback = True

    def step(self, gradient, state):
        raise NotImplementedError


def test_what_an_algorithm_says():
    assert rule_of(OneBit(), "verdict_residual") == "owned"
    assert [rule_of(Kept(), plane) for plane in Kept().keeps] == ["median", "median", "sum"]
    assert rule_of(Signum(), "momentum") == rule_of(Lion(), "momentum") == "median"

    class Says(Kept):
        resized = {"momentum": "mean"}  # noqa: RUF012, a constant

    assert [rule_of(Says(), plane) for plane in Says().keeps] == ["mean", "median", "sum"]

    class Wrong(Kept):
        resized = {"momentum": "most"}  # noqa: RUF012, a constant

    with pytest.raises(ValueError, match=r"resized: expected \('median', 'mean', 'sum'\) by plane"):
        make_algorithm(Wrong())


class Learns(VoteRule):
    name = "learns"
    learns = True

    def initial(self, voters):
        return {"judged": np.zeros(voters), "kept": np.full(2, 7.0)}


def test_what_a_rule_has_learned_fits_or_begins_anew():
    common = {"step": np.array(5), "rule/judged": np.ones(3), "rule/kept": np.ones(2)}
    assert refitted(common, Learns(), 3) == common
    other = refitted(common, Learns(), 2)
    assert {k: a.tolist() for k, a in other.items()} == {
        "step": 5,
        "rule/judged": [0, 0],
        "rule/kept": [7, 7],
    }
    assert refitted({"step": np.array(5)}, MajorityVote(), 2) == {"step": 5}


def saved(path, number, ranks=2, only=None):
    folder = Folder(path, number)
    records = {"common.pt": folder.write("common.pt", lambda file: file.write(b"common"))}
    for rank in range(ranks):
        arrays = {"a/v/0": np.full(3, rank + 0.5)}
        name = f"rank{rank}.npz"
        records[name] = folder.write(name, dump_arrays(arrays))
    manifest = manifest_of(ranks, records, {"a": [0, 1]})
    for rank in range(ranks) if only is None else [only]:
        folder.publish(rank, manifest)
    return folder, records


def test_a_folder_is_a_checkpoint_once_it_has_a_manifest(tmp_path):
    assert newest(tmp_path / "nothing") is None
    folder, records = saved(tmp_path, 3, only=1)  # not the first of those that share it
    assert newest(tmp_path) is None
    folder, records = saved(tmp_path, 3)
    number, manifest = newest(tmp_path)
    assert number == 3
    assert manifest == json.loads((tmp_path / "00000003" / "manifest.json").read_text())
    assert (
        load_arrays(folder.read("rank1.npz", records["rank1.npz"]))["a/v/0"].tolist() == [1.5] * 3
    )
    (tmp_path / "00000004").mkdir()
    (tmp_path / "00000004" / "rank0.npz").write_bytes(b"half")
    (tmp_path / "notes.txt").touch()
    assert newest(tmp_path)[0] == 3
    later, _ = saved(tmp_path, 5)
    later.remove_older(1)
    assert newest(tmp_path)[0] == 5
    assert (tmp_path / "00000003").exists()
    later.remove_older(0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000005", "notes.txt"]
    assert (tmp_path / "00000005" / "manifest.json").exists()


def test_what_is_not_what_was_written(tmp_path):
    folder, records = saved(tmp_path, 1)
    file = tmp_path / "00000001" / "rank0.npz"
    content = file.read_bytes()
    for damaged, message in (
        (content[:-1], r"rank0.npz: expected \d+ bytes, got \d+"),
        (content[:-1] + b"x", "rank0.npz: damaged, or of another checkpoint"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            folder.read("rank0.npz", records["rank0.npz"])
    file.unlink()
    with pytest.raises(CheckpointError, match=r"rank0.npz: cannot be read: No such"):
        folder.read("rank0.npz", records["rank0.npz"])
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: cannot be read: Not a directory"):
        newest(tmp_path / "file")


def test_the_writers_own_error_is_told(tmp_path):
    """PyTorch's and zipfile's writers end with another one when a write has failed."""

    def dump(file):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904, as they do

    with pytest.raises(OSError, match="No space left") as raised:
        Folder(tmp_path, 1).write("common.pt", dump)
    assert raised.value.errno == 28


def test_the_error_is_of_all_kinds():
    for kind in (OSError, ValueError, RuntimeError, VoteError):
        assert issubclass(CheckpointError, kind)
    for kind in (CheckpointError, FileNotFoundError):
        assert issubclass(CheckpointNotFoundError, kind)
    assert str(CheckpointError("load_checkpoint: no")) == "load_checkpoint: no"
