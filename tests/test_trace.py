"""Timelines of both kinds on one clock: from literals, and from a real run."""

from __future__ import annotations

import json

import launch
import pytest

from hvd_sign.cli import main
from hvd_sign.core import trace

OURS = """[
{"pid": 3, "cat": "vote", "ph": "M", "name": "process_name", "args": {"name": "votes of rank 3", \
"start_time_since_epoch_in_micros": 5000}},
{"pid": 3, "cat": "vote", "ph": "X", "name": "pack", "tid": 1, "ts": 10.5, "dur": 2, "args": {}},
"""
HOROVODS = """[
{"name": "process_name", "ph": "M", "pid": 0, "args": {"start_time_since_epoch_in_micros":4000}},
{"name": "process_sort_index", "ph": "M", "pid": 0, "args": {"sort_index": 0}},
{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "gradient"}},
{"name": "process_sort_index", "ph": "M", "pid": 1, "args": {"sort_index": 1}},
{"ph": "B", "name": "ALLREDUCE", "ts": 7, "pid": 1},{"ph": "E", "ts": 9, "pid": 1}]"""


@pytest.fixture
def files(tmp_path):
    ours, horovods = tmp_path / "ours.json", tmp_path / "horovods.json"
    ours.write_text(OURS)
    horovods.write_text(HOROVODS)
    return [ours, horovods]


def test_one_clock_and_a_process_for_each_file(files):
    events = trace.merge(files)["traceEvents"]
    named = [(e["pid"], e["args"]["name"]) for e in events if e.get("name") == "process_name"]
    assert named == [(0, "votes of rank 3"), (1, "Horovod, horovods.json")]
    timed = [(e["ph"], e["ts"], e["pid"], e["tid"]) for e in events if "ts" in e]
    # Horovod began 1000 microseconds before.
    assert timed == [("X", 1010.5, 0, 1), ("B", 7, 1, 1), ("E", 9, 1, 1)]
    tensors = [(e["pid"], e["tid"], e["args"]) for e in events if e.get("name") == "thread_name"]
    assert tensors == [(1, 1, {"name": "gradient"})]


@pytest.mark.parametrize("lost", range(75))
def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(files, lost):
    whole = ["B"] * (lost <= len(',{"ph": "E", "ts": 9, "pid": 1}]')) + ["E"] * (lost <= 1)
    files[1].write_text(HOROVODS[: len(HOROVODS) - lost])
    events = trace.merge(files)["traceEvents"]
    assert [e["ph"] for e in events if e["pid"] == 1 and "ts" in e] == whole


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", "[3]", '[{"ph": "B", "ts": 3}]', "nonsense"])
def test_other_files_are_refused(files, capsys, text):
    files[0].write_text(text)
    assert main(["timeline", str(files[0].with_name("out.json")), *map(str, files)]) == 2
    said = capsys.readouterr().err
    assert "ours.json: expected a timeline of HVD_SIGN_TIMELINE or HOROVOD_TIMELINE" in said


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["timeline", str(tmp_path / "out.json"), str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


@pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)
def test_a_real_run_of_both(program, tmp_path, capsys):
    files = [tmp_path / name for name in ("horovod.json", "votes.json", "votes.1.json")]
    extra = {"HOROVOD_TIMELINE": str(files[0]), "HVD_SIGN_TIMELINE": str(files[1])}
    program("observed", launch.mpirun(2), extra=extra)
    out = tmp_path / "merged.json"
    assert main(["timeline", str(out), *map(str, files)]) == 0
    assert "of 3 files" in capsys.readouterr().out
    events = json.loads(out.read_text())["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    assert names == {0: "Horovod, horovod.json", 1: "votes of rank 0", 2: "votes of rank 1"}

    def tensor(name: str) -> list[float]:
        """When Horovod had to do with a tensor."""
        (thread,) = [e["tid"] for e in events if e["ph"] == "M" and e["args"].get("name") == name]
        return [e["ts"] for e in events if e["pid"] == 0 and e["tid"] == thread and "ts" in e]

    for rank in (0, 1):
        # The program waits for a sum of Horovod's, for a vote, and for another sum.
        mine = [e for e in events if e["pid"] == rank + 1 and e["ph"] == "X" and e["tid"] == 0]
        begin, end = min(e["ts"] for e in mine), max(e["ts"] + e["dur"] for e in mine)
        assert max(tensor("allreduce.before")) < begin + 500  # microseconds
        assert end < max(tensor("allreduce.after"))
        assert 0 < begin < end < 90e6
