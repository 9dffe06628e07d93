"""numpy, PyTorch and TensorFlow in the same ranks: one meaning."""

from __future__ import annotations

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("tensorflow")), reason="needs PyTorch and TensorFlow"
)


MANY = 3 if launch.has("horovod") else 4


@pytest.mark.quick
def test_votes_and_plain_signs(inner):
    inner(2, "ranks_cross_framework.py", limit=400)


def test_algorithms_that_keep_something(inner):
    inner(2, "ranks_cross_algorithms.py", limit=400)


def test_all_on_more_ranks(inner):
    inner(MANY, "ranks_cross_*.py", limit=400)
