"""Deliberately broken: rank 0 waits for a message that nobody sends."""

from __future__ import annotations

import pytest
from mpi4py import MPI


def test_passes_first():
    MPI.COMM_WORLD.Barrier()


@pytest.mark.limit(2)
def test_hangs():
    if MPI.COMM_WORLD.rank == 0:
        MPI.COMM_WORLD.recv(source=1, tag=7)
