"""The harness of the multi-rank tests finds what it must find: failures, hangs, skips, deaths."""

from __future__ import annotations

import os
import time

import launch
import pytest


def fails(inner, pattern: str, *expected: str) -> str:
    with pytest.raises(pytest.fail.Exception) as caught:
        inner(2, f"broken/{pattern}", limit=40)
    report = str(caught.value)
    for text in expected:
        assert text in report
    return report


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_run_and_agree(inner, ranks):
    outcome = inner(ranks, "ranks_harness.py")
    assert len(outcome.passed()) == 2


def test_failure_of_one_rank_fails_the_test_and_only_that_test(inner):
    report = fails(inner, "ranks_one_fails.py", "the deliberate failure", "--- rank 1", "ranks [1]")
    assert "1 of 2 inner tests did not pass" in report


def test_hang_is_killed_with_stacks_and_names_the_test(inner):
    began = time.monotonic()
    report = fails(
        inner, "ranks_hang.py", "KILLED", "rank 0: still in", "::test_hangs", "stacks when its time"
    )
    assert "in test_hangs" in report
    assert time.monotonic() - began < 35


def test_skip_inside_ranks_is_a_failure(inner):
    fails(inner, "ranks_skip.py", "the deliberate skip", "hides a test")


def test_death_of_a_rank_is_reported(inner):
    fails(inner, "ranks_dies.py", "the launch failed", "rank 1: still in", "::test_dies")


def test_ranks_that_collect_different_tests_are_refused(inner):
    fails(inner, "ranks_different.py", "the ranks collected different tests")


def test_kill_reaches_processes_that_left_the_session(tmp_path):
    command = ["sh", "-c", "setsid sleep 60 & wait"]
    outcome = launch.run(command, tmp_path, limit=1)
    assert outcome.killed
    time.sleep(0.2)
    commands = [f"/proc/{pid}/cmdline" for pid in os.listdir("/proc") if pid.isdigit()]
    mine = [path for path in commands if _carries(path, str(tmp_path))]
    assert mine == []


def _carries(cmdline: str, text: str) -> bool:
    try:
        with open(cmdline.replace("cmdline", "environ"), "rb") as environ:
            return f"HVD_SIGN_TEST_REPORT={text}".encode() in environ.read()
    except OSError:
        return False
