"""numpy, PyTorch and TensorFlow in the same ranks: one meaning."""

from __future__ import annotations

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("tensorflow")), reason="needs PyTorch and TensorFlow"
)


MANY = 3 if launch.has("horovod") else 4


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.quick), MANY])
def test_one_meaning(inner, ranks):
    inner(ranks, "ranks_cross_framework.py", limit=400)


@pytest.mark.parametrize("ranks", [2, MANY])
def test_algorithms_that_keep_something(inner, ranks):
    inner(ranks, "ranks_cross_algorithms.py", limit=400)
