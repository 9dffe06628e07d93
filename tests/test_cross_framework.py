"""numpy, PyTorch and TensorFlow in the same ranks: one meaning."""

from __future__ import annotations

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("tensorflow")), reason="needs PyTorch and TensorFlow"
)


@pytest.mark.parametrize(
    "ranks", [pytest.param(2, marks=pytest.mark.quick), 3 if launch.has("horovod") else 4]
)
def test_one_meaning(inner, ranks):
    inner(ranks, "ranks_cross_framework.py", limit=400)
