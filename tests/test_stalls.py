"""A rank that comes late, or never: warnings and errors that name the vote and the rank."""

from __future__ import annotations

import re
import sys

import launch
import pytest


def test_a_late_rank_is_named_and_then_served(program):
    extra = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "1"}
    outcome = program("stall", launch.mpirun(3), "6", extra=extra)
    warnings = re.findall(
        r"vote 'gradient' has waited for \d+ s on rank (\d): (.*)", outcome.output
    )
    assert {rank for rank, _ in warnings} == {"0", "2"}
    assert {who for _, who in warnings} == {"rank 1 did not come"}
    assert len(re.findall(r"rank \d done", outcome.output)) == 3


def test_no_warning_without_a_stall_or_when_disabled(program):
    extra = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "1", "HOROVOD_STALL_CHECK_DISABLE": "1"}
    outcome = program("stall", launch.mpirun(2), "3", extra=extra)
    assert "has waited" not in outcome.output
    outcome = program("stall", launch.mpirun(2), "0")
    assert "has waited" not in outcome.output


def test_a_rank_that_never_comes_is_an_error(tmp_path):
    extra = {
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "1",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "3",
    }
    command = [*launch.mpirun(2), sys.executable, str(launch.RANKS / "programs" / "stall.py")]
    outcome = launch.run([*command, "60"], tmp_path, limit=50, extra=extra)
    assert not outcome.killed, outcome.report()
    assert outcome.returncode == 3
    assert re.search(r"rank 0 gave up: vote 'gradient' .* rank 1 did not come", outcome.output)


def test_a_setting_that_is_no_number_is_refused(program):
    with pytest.raises(pytest.fail.Exception, match="HOROVOD_STALL_CHECK_TIME_SECONDS: expected a"):
        program(
            "stall",
            launch.mpirun(2),
            "0",
            extra={"HOROVOD_STALL_CHECK_TIME_SECONDS": "soon"},
        )


@pytest.mark.parametrize("status", ["0", "1"])
def test_a_rank_that_ends_early_ends_the_job(tmp_path, status):
    program = str(launch.RANKS / "programs" / "early_end.py")
    command = [*launch.mpirun(2), sys.executable, program, status]
    outcome = launch.run(command, tmp_path, limit=50)
    assert not outcome.killed, outcome.report()
    assert outcome.returncode != 0
    sentence = "vote 'gradient' cannot be held: the program of rank 1 has ended"
    assert sentence in outcome.output
