"""Algorithms that keep something: one meaning by numpy, PyTorch and TensorFlow, bit for bit."""

from __future__ import annotations

import pytest
from ranks_cross_framework import DTYPES, EXCHANGES, TIES, check_steps_and_states

from hvd_sign.algorithms import ALGORITHMS

PAIRS = [
    (algorithm, exchange)
    for algorithm in sorted(set(ALGORITHMS) - {"sign"})
    for exchange in EXCHANGES
    if (algorithm, exchange) != ("onebit", "hierarchical")  # which is refused
]


@pytest.mark.parametrize(("algorithm", "exchange"), PAIRS)
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_and_states(hvd, hvd_tf, world, dtype, ties, algorithm, exchange):
    check_steps_and_states(hvd, hvd_tf, world, dtype, ties, exchange, algorithm)
