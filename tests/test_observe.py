"""Timeline, step record and debug lines, as two ranks leave them."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import launch
import pytest

from hvd_sign.core import observe

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)


@pytest.mark.parametrize("engine", ["auto", "python"])
def test_everything_is_watched(program, tmp_path, engine):
    extra = {
        "HVD_SIGN_ENGINE": engine,
        "HVD_SIGN_TIMELINE": str(tmp_path / "timeline.json"),
        "HVD_SIGN_RECORD": str(tmp_path / "steps.jsonl"),
        "HVD_SIGN_DEBUG": "1",
    }
    outcome = program("observed", launch.mpirun(2), extra=extra)
    native = engine == "auto" and importlib.util.find_spec("hvd_sign._engine") is not None

    for rank, name in enumerate(("timeline.json", "timeline.1.json")):
        text = (tmp_path / name).read_text()
        events = json.loads(text.rstrip().rstrip(",") + "]")
        assert {event["pid"] for event in events} == {rank}
        spans = [event for event in events if event["ph"] == "X"]
        assert {"pack", "tally", "apply", "exposed wait"} < {span["name"] for span in spans}
        assert len([span for span in spans if span["name"] == "exposed wait"]) == 3
        assert all(0 <= span["dur"] < 60e6 for span in spans)
        packed = [span for span in spans if span["name"] == "pack"]
        # Three steps of two buckets and the vote on which parameters have gradients, and one ad-hoc
        # vote; the order of a stream is kept.
        assert len({(s["tid"], s["args"]["step"], s["args"]["bucket"]) for s in packed}) == 10
        begins = [span["ts"] for span in packed]
        assert begins == sorted(begins)

    for rank, name in enumerate(("steps.jsonl", "steps.1.jsonl")):
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [line["step"] for line in lines] == [0, 1, 2]
        for line in lines:
            assert line["rank"] == rank
            assert line["buckets"] == 3
            assert line["votes"] == 3
            assert line["exchanges"] == ["sharded"] * 3
            # Buckets begin with the last parameter: 10 numbers, then 4688 blocks.
            assert line["segments"] == ([1, 5, 1] if native else [1, 1, 1])
            # Half of 300,010 signs twice, and little else.
            assert 37_500 < line["payload_bytes"] < 39_500
            assert line["wait_seconds"] > 0

    for rank in (0, 1):
        assert re.search(rf"\[hvd_sign {rank}\] \d+ ms: stream 0: single asked for", outcome.output)
        assert re.search(
            rf"\[hvd_sign {rank}\] \d+ ms: stream \d: step 2: .* ended", outcome.output
        )


@pytest.mark.parametrize("engine", ["auto", "python"])
def test_each_optimizer_has_a_record_of_its_own(program, tmp_path, engine):
    extra = {"HVD_SIGN_ENGINE": engine, "HVD_SIGN_RECORD": str(tmp_path / "steps.jsonl")}
    program("two_records", launch.mpirun(2), extra=extra)
    for name in ("steps.jsonl", "steps.1.jsonl"):
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        streams = sorted({line["stream"] for line in lines})
        large, small = ([line for line in lines if line["stream"] == n] for n in streams)
        assert [line["step"] for line in large] == [0, 1, 2, 3]
        assert [line["step"] for line in small] == [0, 1]
        for line in large:
            assert line["votes"] == line["buckets"] == 3
            assert 37_500 < line["payload_bytes"] < 39_500
        for line in small:
            assert line["votes"] == line["buckets"] == 1
            assert 0 < line["payload_bytes"] < 500
        # NaN in one step of the large one: a chunk in which rank 0 abstains, a step left out.
        skipped = [line["skipped_steps"] for line in large]
        assert skipped == [0, 1, 0, 0]
        assert [line["skipped_steps"] for line in small] == [0, 0]
        for line in lines:
            assert all(value >= 0 for value in line.values() if not isinstance(value, list))
            assert line["wait_seconds"] > 0


def test_a_file_that_cannot_be_written_is_refused(program):
    with pytest.raises(pytest.fail.Exception, match="HVD_SIGN_TIMELINE: expected a file that can"):
        program("observed", launch.mpirun(2), extra={"HVD_SIGN_TIMELINE": "/nowhere/file.json"})


@pytest.mark.parametrize("engine", ["auto", "python"])
def test_a_full_disk_is_warned_of_once_and_ends_no_training(program, tmp_path, engine):
    for name in ("timeline.json", "steps.jsonl"):  # rank 0's
        (tmp_path / name).symlink_to("/dev/full")
    extra = {
        "HVD_SIGN_ENGINE": engine,
        "HVD_SIGN_TIMELINE": str(tmp_path / "timeline.json"),
        "HVD_SIGN_RECORD": str(tmp_path / "steps.jsonl"),
    }
    outcome = program("observed", launch.mpirun(2), extra=extra)
    for variable in ("HVD_SIGN_TIMELINE", "HVD_SIGN_RECORD"):
        warnings = re.findall(rf"{variable}: .* cannot be written \(.*\)", outcome.output)
        assert len(warnings) == 1, outcome.report()
        assert "No space left on device" in warnings[0]
    assert "Exception ignored" not in outcome.output, outcome.report()
    assert len((tmp_path / "steps.1.jsonl").read_text().splitlines()) == 3
    events = (tmp_path / "timeline.1.json").read_text()
    assert events.count("exposed wait") == 3


def test_what_fits_on_a_disk_stays_and_nothing_follows(tmp_path, caplog, monkeypatch):
    """A disk that takes part of a line, then none, then has room again."""
    lines = observe.Lines("HVD_SIGN_RECORD", tmp_path / "steps.jsonl")
    written = lines._file.write
    room = iter([4, None])

    def write(content):
        size = next(room)
        if size is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(bytes(content)[:size])

    lines.add("whole")
    monkeypatch.setattr(lines, "_file", SimpleNamespace(write=write, name="steps.jsonl"))
    for _ in range(3):
        lines.flush()
        lines.add("later")
    lines.flush()
    assert (tmp_path / "steps.jsonl").read_text() == "whol"
    assert caplog.text.count("HVD_SIGN_RECORD: steps.jsonl cannot be written") == 1


def test_a_file_that_vanishes_ends_nothing(tmp_path, caplog):
    lines = observe.Lines("HVD_SIGN_RECORD", tmp_path / "steps.jsonl")
    lines.add("first")
    lines.flush()
    (tmp_path / "steps.jsonl").unlink()
    for _ in range(3):
        lines.add("x" * observe.BUFFERED)
        lines.flush()
    assert caplog.text == ""


def test_debug_lines_that_nobody_can_read_end_nothing(tmp_path):
    code = """
import logging, numpy, hvd_sign
told = logging.FileHandler("told.txt")
logging.getLogger("hvd_sign").addHandler(told)
for _ in range(3):
    hvd_sign.allreduce(numpy.ones(3, "float32"))
print("done")
"""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=launch.environment({"HVD_SIGN_DEBUG": "1"}),
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.stdout == "done\n"
    told = (tmp_path / "told.txt").read_text()
    assert told.count("HVD_SIGN_DEBUG: no more lines are written") == 1
    assert told.count("asked for") == 1
