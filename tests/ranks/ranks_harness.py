"""The harness itself: each rank is here once, and the markers deselect."""

from __future__ import annotations

import pytest
from mpi4py import MPI


def test_every_rank_is_here_once():
    assert MPI.COMM_WORLD.allgather(MPI.COMM_WORLD.rank) == list(range(MPI.COMM_WORLD.size))


@pytest.mark.ranks(2)
def test_needs_two():
    assert MPI.COMM_WORLD.size >= 2


@pytest.mark.ranks(1, 1)
def test_needs_one():
    assert MPI.COMM_WORLD.size == 1
