"""The check of key ratios: its figures by hand, and a small run on loopback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import bench_results as literal
import launch as test_launch
import pytest

from benchmarks import check
from benchmarks.emulation.launch import netns
from benchmarks.reporting import results
from benchmarks.reporting.results import ResultError

CALLS = {"fp32": [0.001, 0.008], "fp16": [0.003, 0.004], "vote": [0.002, 0.001]}


@pytest.fixture(autouse=True)
def own_environment():
    with mock.patch.dict(os.environ):
        yield


def test_ratios_of_calls() -> None:
    assert check.call_ratios(literal.allreduce(CALLS)) == {
        "Horovod fp32 / vote, 1 KiB, 1 Gbit/s, 4 workers": 0.5,
        "Horovod fp16 / vote, 1 KiB, 1 Gbit/s, 4 workers": 1.5,
        "Horovod fp32 / vote, 2 KiB, 1 Gbit/s, 4 workers": 8.0,
        "Horovod fp16 / vote, 2 KiB, 1 Gbit/s, 4 workers": 4.0,
        # 64 bytes at 1 Gbit/s take 512 ns, the vote 1 ms.
        "wire limit / vote, 2 KiB, 1 Gbit/s, 4 workers": pytest.approx(5.12e-4),
    }
    loopback = check.call_ratios(literal.allreduce(CALLS, None, 2, "loopback"))
    assert len(loopback) == 4
    assert loopback["Horovod fp32 / vote, 2 KiB, loopback, 2 workers"] == 8.0


def test_what_moved_by_more_than_a_tenth_is_marked() -> None:
    now = {"same": 1.09, "up": 2.3, "down": 0.89, "new": 5.0}
    shown = check.table(now, {"same": 1.0, "up": 2.0, "down": 1.0, "gone": 1.0})
    rows = zip(*(column.cells for column in shown.columns), strict=True)
    assert list(rows) == [
        ("same", "1", "1.09", "+9%", ""),
        ("up", "2", "2.3", "+15%", "better"),
        ("down", "1", "0.89", "-11%", "[bold]worse[/bold]"),
        ("new", "-", "5", "-", ""),
    ]


@pytest.mark.skipif(not test_launch.has("horovod"), reason="needs Horovod")
def test_a_small_run_on_loopback_and_one_beside_it(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(netns, "why_unavailable", lambda: "no namespaces here")
    monkeypatch.setattr(check, "COORDINATES", 1 << 16)
    reference = tmp_path / "deep" / "check.json"
    line = ["-n", "2", "-e", "64K", "--reference", str(reference)]
    assert check.main([*line, "--write"]) == 0
    said = capsys.readouterr().out
    assert "on loopback alone: no namespaces here" in said
    assert "There is no reference yet" in said
    written = results.load(reference)
    assert written["kind"] == "check"
    where = "loopback, 4 workers"
    calls = [
        f"Horovod {w} / vote, {s}, {where}" for s in ("1 KiB", "64 KiB") for w in ("fp32", "fp16")
    ]
    kernels = ["pack float32 / read", "write_verdict float32 / numpy.copyto"]
    assert list(written["ratios"]) == [*kernels, *calls]
    assert all(ratio > 0 for ratio in written["ratios"].values())

    # Measured by somebody else, and long ago: the ratios that moved decide nothing.
    written["ratios"] = dict.fromkeys(written["ratios"], 1e6)
    written["machine"]["cpu"] = "Another CPU"
    reference.write_text(json.dumps(written))
    monkeypatch.setattr(check, "measure", lambda given, console: {calls[0]: 2.0})
    assert check.main(line) == 0
    said = capsys.readouterr().out
    assert "-100%" in said
    assert "worse" in said
    assert "This machine is another one" in " ".join(said.split())
    assert json.loads(reference.read_text()) == written


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-n", "0"], "--iters: expected 1 or more, got 0"),
        (["-e", "1K"], "--max-bytes: expected a multiple of 1024 above it, got 1024"),
        (["-e", "5000"], "--max-bytes: expected a multiple of 1024 above it, got 5000"),
    ],
)
def test_bad_options(capsys, arguments, complaint) -> None:
    with pytest.raises(SystemExit) as left:
        check.main(arguments)
    assert left.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_reference_that_is_none(tmp_path: Path, capsys) -> None:
    path = tmp_path / "check.json"
    path.write_text(json.dumps(literal.allreduce(CALLS)))
    with pytest.raises(ResultError, match="expected a result of kind check, got 'allreduce'"):
        check.load(path)
    assert check.main(["--reference", str(path)]) == 2
    assert "expected a result of kind check" in capsys.readouterr().err
    assert check.load(tmp_path / "nothing.json") is None


def test_kernels_are_set_beside_memory() -> None:
    ratios = check.kernel_ratios(1 << 16)
    assert len(ratios) == 2
    assert all(ratio > 0 for ratio in ratios.values())
