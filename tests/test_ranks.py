"""The core under real MPI ranks, without Horovod or any framework."""

from __future__ import annotations

import launch
import pytest

COUNTS = (
    1,
    2,
    pytest.param(3, marks=pytest.mark.quick),
    4,
    pytest.param(7, marks=pytest.mark.slow),
)


@pytest.mark.parametrize("ranks", COUNTS)
def test_core(inner, ranks):
    inner(ranks, "ranks_core_*.py")


@pytest.mark.parametrize("arguments", [[], ["finalize"]], ids=["", "finalized by hand"])
@pytest.mark.parametrize("ranks", [0, 2], ids=["plain python", "2 ranks"])
def test_core_alone(program, ranks, arguments):
    outcome = program("core_alone", launch.mpirun(ranks) if ranks else [], *arguments)
    assert outcome.output.count("a rank is done") == max(ranks, 1)
