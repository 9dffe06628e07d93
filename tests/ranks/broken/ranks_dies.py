"""Deliberately broken: rank 1 ends in the middle of a test."""

from __future__ import annotations

import os

from mpi4py import MPI


def test_dies():
    if MPI.COMM_WORLD.rank == 1:
        os._exit(3)
    MPI.COMM_WORLD.Barrier()
