"""The core under real MPI ranks, without Horovod or any framework."""

from __future__ import annotations

import pytest

COUNTS = (1, 2, 3, 4, 7)


@pytest.mark.parametrize("ranks", COUNTS)
def test_core(inner, ranks):
    inner(ranks, "ranks_core_*.py")
