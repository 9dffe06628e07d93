"""The kernels' benchmark runs, and judges its targets by its own rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("psutil")

from benchmarks import kernels as bench


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kernels.json"
    options = ["--coordinates", "10000", "--rounds", "2", "--voters", "1", "3", "--json", str(file)]
    assert bench.main(options) == 0
    printed = capsys.readouterr().out
    assert "pack float32" in printed
    assert "tally M = 3" in printed
    result = json.loads(file.read_text())
    assert result["kind"] == "kernels"
    rows = result["rows"]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows.values())
    assert rows["numpy.copyto"]["bytes"] == 2 * 4 * 10000
    assert [t["of"] for t in rows["pack float32"]["targets"]] == ["read", bench.PACKBITS]
    assert [t["of"] for t in rows["momentum + pack float32"]["targets"]] == [bench.LIMIT]
    assert rows["momentum + pack float16"]["bytes"] == 10 * 10000
    assert {"tally M = 3, weighted", "tally M = 3, and counted"} <= rows.keys()
    assert not rows["tally M = 1, ties zero"]["targets"]
    assert rows["tally M = 3, ties zero"]["bytes"] >= bench.BALLOT_BYTES - 16 * 3


def test_targets_are_judged() -> None:
    slow = bench.Row("slow", print, 100, 10, (), [2.0, 4.0])
    fast = bench.Row("fast", print, 100, 10, (), [1.0, 9.0])
    named = {"slow": slow, "fast": fast}

    def met(row: bench.Row, *target: object) -> tuple[float, bool]:
        row.targets = (bench.Target(*target),)  # type: ignore[arg-type]
        (judged,) = bench.verdict(row, named)
        return judged["got"], judged["met"]

    assert met(fast, "bandwidth", "slow", 2.0) == (2.0, True)
    assert met(slow, "bandwidth", "fast", 0.6) == (0.5, False)
    assert met(fast, "speed", "slow", 2.1) == (2.0, False)
    assert met(slow, "seconds", "", 2.0) == (2.0, True)
    assert met(slow, "seconds", "", 1.9) == (2.0, False)


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--rounds", "0"])
    assert "expected numbers from 1 on" in capsys.readouterr().err
