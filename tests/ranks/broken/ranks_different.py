"""Deliberately broken: the ranks collect different tests."""

from __future__ import annotations

from mpi4py import MPI

if MPI.COMM_WORLD.rank == 0:

    def test_of_rank_0_alone():
        pass
