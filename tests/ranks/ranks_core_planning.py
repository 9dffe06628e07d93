"""What exchange='auto' and its fallback take, when measured constants say what is fast."""

from __future__ import annotations

import importlib.util
import json
import logging

import hierarchy
import numpy as np
import pytest
import reference
from mpi4py import MPI

import hvd_sign

WIRE_OUTRUNS_TALLY = {
    "latency": 1e-6,
    "bandwidth": 1e15,
    "pack": 1e15,
    "tally": 1e3,
    "apply": 1e15,
}
SLOW_WIRE = {**WIRE_OUTRUNS_TALLY, "bandwidth": 1e3, "tally": 1e15}
QUICK_NODES = {
    **SLOW_WIRE,
    "local_latency": 1e-9,
    "local_bandwidth": 1e15,
    "node_latency": 1e-9,
    "node_bandwidth": 1e15,
}
DENSE = {"exchange": "auto", "fallback": "allreduce"}
DTYPES = ["float16", "float64", *(["bfloat16"] if importlib.util.find_spec("ml_dtypes") else [])]


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """measured(constants): a communicator whose ranks read these constants from the file."""
    made = []

    def write(constants: dict) -> MPI.Intracomm:
        file = tmp_path / "link.json"
        file.write_text(json.dumps({"version": 1, **constants}))
        monkeypatch.setenv("HVD_SIGN_LINK_FILE", str(file))
        made.append(MPI.COMM_WORLD.Dup())
        return made[-1]

    yield write
    for comm in made:
        comm.Free()


def summed(comm: MPI.Intracomm, signal: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
    """The result of the fallback, and the numpy mean with bad chunks as zeros."""
    rows = []
    for row in comm.allgather(signal):
        values = reference.wide(row)
        for start in range(0, values.size, reference.CHUNK):
            if not np.isfinite(values[start : start + reference.CHUNK]).all():
                values[start : start + reference.CHUNK] = 0
        rows.append(values)
    got = hvd_sign.allreduce(signal, comm=comm, **DENSE, **options)
    assert got.shape == signal.shape
    assert got.dtype == signal.dtype
    assert len(set(comm.allgather(got.tobytes()))) == 1
    return reference.wide(got), np.mean(rows, axis=0)


def integers(rng: np.random.Generator, shape, dtype="float32") -> np.ndarray:
    """So small that their sums are exact in every type."""
    return rng.integers(-3, 4, shape).astype(dtype)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
def test_dense_is_the_sign_of_the_mean(measured, rng, ties):
    comm = measured(WIRE_OUTRUNS_TALLY)
    for shape in ((10_000,), (70, 90), (6500, 1)):
        got, mean = summed(comm, integers(rng, shape), ties=ties)
        np.testing.assert_array_equal(got, np.sign(mean))
        assert (got == 0).any()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
def test_dense_with_a_scale_is_the_mean(measured, rng, dtype):
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    comm = measured(WIRE_OUTRUNS_TALLY)
    got, mean = summed(comm, integers(rng, 9000, dtype), scale="mean_abs")
    np.testing.assert_allclose(got, mean, rtol=8e-3, atol=1e-6)
    got, mean = summed(comm, integers(rng, 9000, dtype))
    np.testing.assert_array_equal(got, np.sign(mean))


@pytest.mark.ranks(2)
def test_dense_takes_nothing_from_a_chunk_with_nan(measured, rng):
    comm = measured(WIRE_OUTRUNS_TALLY)
    signal = integers(rng, 4096 * 3 + 5)
    if comm.rank == 1:
        signal[4096 * 2] = np.nan
        signal[-1] = np.inf
    before = hvd_sign.vote_stats().nonfinite_chunks
    got, mean = summed(comm, signal, scale="mean_abs")
    np.testing.assert_allclose(got, mean, rtol=1e-6)
    found = hvd_sign.vote_stats().nonfinite_chunks - before
    assert found == (2 if comm.rank == 1 else 0)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_dense_sum_beyond_fp32_gives_no_infinity(measured, dtype):
    comm = measured(WIRE_OUTRUNS_TALLY)
    signal = np.full(9000, 3e38, dtype)
    signal[:100] *= -1
    signal[100:200] *= 1 if comm.rank % 2 else -1
    signal[200:300] = -0.5
    largest = 2.0**128 - 2.0**104
    for scale, size, small in (("mean_abs", largest / comm.size, 0.5), ("none", 1.0, 1.0)):
        got = hvd_sign.allreduce(signal, comm=comm, scale=scale, **DENSE)
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got[:100], -size, rtol=1e-6)
        np.testing.assert_allclose(got[300:], size, rtol=1e-6)
        np.testing.assert_array_equal(got[200:300], -small)


@pytest.mark.ranks(2)
def test_dense_is_told_once_by_one_rank(measured, rng, caplog):
    comm = measured(WIRE_OUTRUNS_TALLY)
    with caplog.at_level(logging.WARNING, logger="hvd_sign"):
        for size in (8000, 9000, 8000):
            summed(comm, integers(rng, size))
    told = [m for m in caplog.messages if "dense fp32 allreduce, which is expected to take" in m]
    assert len(told) == (1 if comm.rank == 0 else 0)


@pytest.mark.ranks(2)
def test_dense_sends_a_ring_s_bytes_and_counts_as_a_vote(measured, rng):
    comm = measured(WIRE_OUTRUNS_TALLY)
    before = hvd_sign.vote_stats()
    summed(comm, integers(rng, 100_000))
    after = hvd_sign.vote_stats()
    ring = 2 * (comm.size - 1) / comm.size * 400_000
    assert 0.99 * ring <= after.payload_bytes - before.payload_bytes <= 1.01 * ring
    assert after.votes == before.votes + 1


@pytest.mark.ranks(2)
def test_a_vote_where_it_is_faster_or_nothing_else_is_allowed(measured, rng):
    signal = rng.standard_normal(9001).astype("float32")
    for constants, options in ((SLOW_WIRE, DENSE), (WIRE_OUTRUNS_TALLY, {"exchange": "auto"})):
        comm = measured(constants)
        got = hvd_sign.allreduce(signal, comm=comm, ties="zero", **options)
        reference.verdict(comm.allgather(signal), "zero").check(got)
    # Three workers out of whom two say + softly and one says - loudly tell the two ways apart.
    loud = np.full(9001, -100.0 if comm.rank == 0 else 1.0, dtype="float32")
    if comm.size > 2:
        got = hvd_sign.allreduce(loud, comm=measured(SLOW_WIRE), **DENSE)
        np.testing.assert_array_equal(got, 1)
        got = hvd_sign.allreduce(loud, comm=measured(WIRE_OUTRUNS_TALLY), **DENSE)
        np.testing.assert_array_equal(got, -1)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("local", ["vote", "mean"])
def test_auto_is_hierarchical_where_messages_inside_nodes_cost_nothing(
    measured, rng, monkeypatch, local
):
    world = MPI.COMM_WORLD
    size = 100_001
    signal = rng.standard_normal(size).astype("float32")
    signals = world.allgather(signal)
    pairs = [rank // 2 for rank in range(world.size)]
    sent, results = [], []
    for constants, names in (
        (QUICK_NODES, pairs),
        (SLOW_WIRE, pairs),
        (QUICK_NODES, range(world.size)),
    ):
        monkeypatch.setenv("HVD_SIGN_NODE", str(names[world.rank]))
        comm = measured(constants)
        before = hvd_sign.vote_stats().payload_bytes
        options = {"name": "gradient", "seed": 7, "step": 3, "local": local, **DENSE}
        results.append(hvd_sign.allreduce(signal, comm=comm, **options))
        sent.append(hvd_sign.vote_stats().payload_bytes - before)
    wanted = hierarchy.verdict(signals, pairs, "coin", local, name="gradient", seed=7, step=3)
    np.testing.assert_array_equal(results[0], wanted)
    for flat in results[1:]:
        reference.verdict(signals, "coin").check(flat)
    # A rank that follows sends its ballot, or its numbers, to its leader alone.
    if world.rank % 2:
        assert sent[0] <= 1.1 * (size / 8 if local == "vote" else 4 * size)


@pytest.mark.ranks(2)
def test_planned_segments_decide_the_same(measured, rng):
    """Constants that ask for the smallest segments give the bits of one large segment."""
    signal = rng.standard_normal(100_001).astype("float32")
    many = {"latency": 1e-12, "bandwidth": 1e3, "pack": 1e6, "tally": 1e6, "apply": 1e6}
    few = {**many, "latency": 1.0}
    results = {
        hvd_sign.allreduce(signal, comm=measured(constants), name="same", step=0).tobytes()
        for constants in (many, few)
    }
    assert len(results) == 1
