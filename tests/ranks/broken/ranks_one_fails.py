"""Deliberately broken: rank 1 alone fails; the test after it passes."""

from __future__ import annotations

from mpi4py import MPI


def test_fails_on_rank_1():
    assert MPI.COMM_WORLD.rank != 1, "the deliberate failure"


def test_passes_afterwards():
    MPI.COMM_WORLD.Barrier()
