"""Algorithms that keep something: one meaning by numpy, PyTorch and TensorFlow, bit for bit."""

from __future__ import annotations

import pytest
from ranks_cross_framework import DTYPES, EXCHANGES, TIES, check_steps_and_states

from hvd_sign.algorithms import ALGORITHMS

# A Latin square for each algorithm: of type, ties and exchange each pair comes once with each
# algorithm, and all three together with one of them at least.
SQUARES = [
    (algorithm, dtype, TIES[column], EXCHANGES[(square + row + column) % 3])
    for square, algorithm in enumerate(sorted(set(ALGORITHMS) - {"sign"}))
    for row, dtype in enumerate(DTYPES)
    for column in range(3)
]


@pytest.mark.parametrize(("algorithm", "dtype", "ties", "exchange"), SQUARES)
def test_steps_and_states(hvd, hvd_tf, world, dtype, ties, exchange, algorithm):
    if (algorithm, exchange) == ("onebit", "hierarchical"):
        exchange = "sharded"  # the other is refused
    check_steps_and_states(hvd, hvd_tf, world, dtype, ties, exchange, algorithm)
