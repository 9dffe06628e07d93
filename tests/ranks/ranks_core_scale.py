"""The scale of a vote: a median of the ranks' mean absolute values, which no rank moves far."""

from __future__ import annotations

import hierarchy
import numpy as np
import pytest
import reference
from mpi4py import MPI

import hvd_sign

LARGEST = 2.0**128 - 2.0**104
"""Of fp32, in which scales travel."""


def scaled(comm: MPI.Intracomm, signal: np.ndarray, **options) -> np.ndarray:
    got = hvd_sign.allreduce(signal, comm=comm, ties="zero", scale="mean_abs", **options)
    assert got.dtype == signal.dtype
    assert len(set(comm.allgather(got.tobytes()))) == 1
    return got


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_it_is_the_lower_median(comm, rng, dtype, exchange):
    for length in (1, 100, 5000, 70_001):
        signal = (rng.standard_normal(length) * (1 + comm.rank)).astype(dtype)
        signals = comm.allgather(signal)
        got = scaled(comm, signal, exchange=exchange)
        rtol = 2e-3 if dtype == "float16" else 2e-6
        reference.verdict(signals, "zero").check(got, reference.mean_abs(signals), rtol=rtol)


@pytest.mark.parametrize("length", [300, 20_000])
def test_one_rank_a_million_times_too_large_is_not_followed(comm, exchange, length):
    sizes = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0][: comm.size]
    loud = min(1, comm.size - 1)
    sizes[loud] *= 1e6
    wanted = {1: 1e6, 2: 1.0, 3: 3.0, 4: 3.0, 7: 5.0}[comm.size]
    got = scaled(comm, np.full(length, -sizes[comm.rank], "float32"), exchange=exchange)
    np.testing.assert_array_equal(got, -wanted)


def test_nonfinite_chunks_and_ranks_are_left_out(comm, rng, exchange):
    signal = rng.standard_normal(4096 * 2).astype("float32")
    signal[7 if comm.rank else 5000] = np.nan
    if comm.rank == 2:
        signal[:] = np.inf
    signals = comm.allgather(signal)
    got = scaled(comm, signal, exchange=exchange)
    reference.verdict(signals, "zero").check(got, reference.mean_abs(signals), rtol=2e-6)


def test_ranks_with_nothing_but_zeros_are_left_out(comm, exchange):
    """As where few ranks have use for an expert of a mixture: theirs is the scale."""
    last = comm.rank == comm.size - 1
    got = scaled(comm, np.full(200, -6.0 if last else 0.0, "float32"), exchange=exchange)
    np.testing.assert_array_equal(got, -6.0)


def test_numbers_beyond_fp32_give_no_infinity(comm, exchange):
    got = scaled(comm, np.full(100, -1e200), exchange=exchange)
    np.testing.assert_array_equal(got, -LARGEST)
    got = scaled(comm, np.full(5000, 1.7e308), exchange=exchange)
    np.testing.assert_array_equal(got, LARGEST)
    loud = comm.rank == comm.size - 1
    got = scaled(comm, np.full(100, 1e200 if loud else 0.5), exchange=exchange)
    np.testing.assert_array_equal(got, LARGEST if comm.size == 1 else 0.5)


def test_subnormal_sizes(comm, exchange):
    got = scaled(comm, np.full(100, -(2.0**-140), "float32"), exchange=exchange)
    np.testing.assert_array_equal(got, -(2.0**-140))


@pytest.mark.ranks(3)
@pytest.mark.parametrize("local", ["vote", "mean"])
@pytest.mark.parametrize("node_of", [lambda r: 0, lambda r: r // 2, lambda r: r // 3, lambda r: r])
def test_nodes_follow_no_loud_rank(monkeypatch, local, node_of):
    """Whatever shares a node, one rank's size moves the scale to a neighbour in order."""
    world = MPI.COMM_WORLD
    names = [str(node_of(rank)) for rank in range(world.size)]
    monkeypatch.setenv("HVD_SIGN_NODE", names[world.rank])
    comm = world.Dup()
    options = {"exchange": "hierarchical", "local": local}
    for loud in range(world.size):
        size = 1e6 if world.rank == loud else 1.0 + world.rank
        signal = np.full(9000, size, "float32")
        wanted = hierarchy.mean_abs(comm.allgather(signal), names)
        assert wanted <= world.size
        np.testing.assert_array_equal(scaled(comm, signal, **options), np.float32(wanted))
    comm.Free()


@pytest.mark.ranks(2)
def test_a_mean_of_numbers_near_the_largest_gives_none_beyond_it(monkeypatch):
    monkeypatch.setenv("HVD_SIGN_NODE", "here")
    comm = MPI.COMM_WORLD.Dup()
    signal = np.full(300, 3e38, "float32")
    got = scaled(comm, signal, exchange="hierarchical", local="mean")
    np.testing.assert_array_equal(got, np.float32(3e38))
    comm.Free()
