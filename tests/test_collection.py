"""What pytest finds when it collects the tests, and what that must not do."""

from __future__ import annotations

import sys

import pytest
from test_layout import run_here


@pytest.fixture(scope="module")
def collected() -> list[str]:
    """What a collection of the quick tests prints: their names, then about MPI and its status."""
    code = (
        "import sys, pytest; status = pytest.main(['--collect-only', '-qm', 'quick', 'tests']);"
        "print('\\nmpi4py.MPI' if 'mpi4py.MPI' in sys.modules else '\\nno MPI', status)"
    )
    return run_here(sys.executable, "-c", code).stdout.splitlines()


def test_collecting_the_tests_starts_no_mpi(collected):
    """Else every mpirun of theirs would take itself for a part of that job, and fail."""
    assert collected[-1] == "no MPI 0", collected[-20:]


@pytest.mark.parametrize(
    "test",
    [
        "test_ranks.py::test_core[3]",
        "test_engines.py::test_engines_and_segments_give_equal_verdicts[2]",
        "test_engines.py::test_torch_votes_with_three_threads",
        "test_cross_framework.py::test_votes_and_plain_signs",
    ],
)
def test_the_core_its_engines_and_each_framework_are_in_the_quick_tier(collected, test):
    assert f"tests/{test}" in collected
