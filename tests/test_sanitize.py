"""The sanitizers' command: what it compiles, and what it refuses. make test-sanitize runs it."""

from __future__ import annotations

import shutil

import pytest

from scripts import sanitize


def test_every_kernel_is_compiled() -> None:
    python = {"arrays.cpp", "module.cpp", "nanobind.cpp", "pack_module.cpp", "tally_module.cpp"}
    assert {file.name for file in sanitize.NATIVE.glob("*.cpp")} - python == {
        file.name for file in sanitize.KERNELS
    }
    engine = {file.name for file in (sanitize.NATIVE / "engine").glob("*.cpp")}
    assert engine - {"module.cpp"} == {file.name for file in sanitize.ENGINE}


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sanitize.main(["kernel"])
    assert "expected kernels or engine or allocations, got 'kernel'" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("mpicxx") is None, reason="no compiler for MPI programs")
def test_the_engine_allocates_nothing_once_it_runs(capfd: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main(["allocations"]) == 0, capfd.readouterr()
    assert " 0 later, 0 wrong" in capfd.readouterr().out
