"""The core's allreduce decides what the definition says, on several communicators."""

from __future__ import annotations

import importlib.util
import logging
import sys

import numpy as np
import pytest
import reference
from mpi4py import MPI

import hvd_sign

TIES = ("coin", "zero", "positive")
LENGTHS = (1, 7, 63, 64, 65, 127, 128, 129, 300, 4095, 4096, 4097, 9000)


def same_everywhere(comm: MPI.Intracomm, array: np.ndarray) -> bool:
    return all(other == array.tobytes() for other in comm.allgather(array.tobytes()))


def vote(comm: MPI.Intracomm, array: np.ndarray, **options) -> np.ndarray:
    """A vote, and what must hold for every vote: shape, type, input untouched, equal on ranks."""
    before = array.tobytes()
    got = hvd_sign.allreduce(array, comm=comm, **options)
    assert isinstance(got, np.ndarray)
    assert got.shape == array.shape
    assert got.dtype == array.dtype
    assert array.tobytes() == before
    assert same_everywhere(comm, got)
    return got


def signals_with_everything(rng: np.random.Generator, length: int, dtype="float32") -> np.ndarray:
    """Signs, zeros of both signs, subnormals, and some blocks of nothing but zeros."""
    values = rng.standard_normal(length).astype(dtype)
    values[rng.random(length) < 0.3] = 0.0
    values[rng.random(length) < 0.1] = -0.0
    tiny = np.finfo(dtype).smallest_subnormal
    values[rng.random(length) < 0.05] = -tiny
    for start in range(0, length, 64):
        if rng.random() < 0.25:
            values[start : start + 64] = rng.choice([0.0, -0.0])
    return values


def test_core_needs_no_framework():
    loaded = {"horovod", "torch", "tensorflow"} & set(sys.modules)
    assert not loaded


@pytest.mark.parametrize("ties", TIES)
def test_verdict_is_the_majority(comm, rng, ties, exchange):
    for length in LENGTHS:
        signal = rng.standard_normal(length).astype("float32")
        expected = reference.verdict(comm.allgather(signal), ties)
        expected.check(vote(comm, signal, ties=ties, exchange=exchange))


@pytest.mark.parametrize("ties", TIES)
def test_zeros_subnormals_and_dead_blocks(comm, rng, ties, exchange):
    for length in LENGTHS:
        signal = signals_with_everything(rng, length)
        expected = reference.verdict(comm.allgather(signal), ties)
        expected.check(vote(comm, signal, ties=ties, exchange=exchange))


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floating_types(comm, rng, dtype, ties):
    signal = signals_with_everything(rng, 5000, dtype)
    expected = reference.verdict(comm.allgather(signal), ties)
    expected.check(vote(comm, signal, ties=ties))


if importlib.util.find_spec("ml_dtypes"):

    @pytest.mark.parametrize("ties", TIES)
    def test_bfloat16(comm, rng, ties):
        import ml_dtypes

        signal = rng.standard_normal(700).astype(ml_dtypes.bfloat16)
        signal[rng.random(700) < 0.3] = 0
        expected = reference.verdict(comm.allgather(signal.astype("float64")), ties)
        expected.check(vote(comm, signal, ties=ties).astype("float64"))


def test_signs_survive_the_range_of_float64(comm):
    """1e-300 is no zero and 1e300 no Inf, though both are in float32."""
    signal = np.array([1e-300, -1e-300, 1e300, -1e300, 5e-324, -5e-324])
    got = vote(comm, signal, ties="zero")
    np.testing.assert_array_equal(got, np.sign(signal))


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4, 5), (64, 65), (1, 1, 1)], ids=str)
def test_shapes(comm, rng, shape, ties, exchange):
    signal = np.asarray(rng.standard_normal(shape), dtype="float32")
    expected = reference.verdict(comm.allgather(signal), ties)
    expected.check(vote(comm, signal, ties=ties, exchange=exchange))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0, 2)], ids=str)
def test_empty_arrays(comm, shape, exchange):
    vote(comm, np.empty(shape, dtype="float32"), exchange=exchange)


def test_layouts(comm, rng):
    """The verdict belongs to the element, however its rank stores the array."""
    signal = rng.standard_normal((70, 90)).astype("float32")
    stored = [signal, np.asfortranarray(signal), np.repeat(signal, 2, axis=1)[:, ::2]]
    expected = reference.verdict(comm.allgather(signal), "zero")
    expected.check(vote(comm, stored[comm.rank % 3], ties="zero"))
    frozen = signal.copy()
    frozen.flags.writeable = False
    expected.check(vote(comm, frozen, ties="zero"))


@pytest.mark.parametrize("ties", TIES)
def test_block_that_nobody_is_active_in_has_verdict_zero(comm, rng, ties):
    signal = rng.standard_normal(64 * 6 + 10).astype("float32")
    signal[64:128] = 0.0
    signal[256:320] = -0.0
    signal[384:] = 0.0  # the short last block
    got = vote(comm, signal, ties=ties)
    for dead in (got[64:128], got[256:320], got[384:]):
        np.testing.assert_array_equal(dead, 0)
    assert np.abs(got[:64]).min() == 1 or ties == "zero"
    np.testing.assert_array_equal(vote(comm, np.zeros(1000, "float32"), ties=ties), 0)


@pytest.mark.parametrize("ties", TIES)
def test_block_active_on_one_rank_only_is_decided_by_it(comm, rng, ties):
    owner = comm.size - 1
    alone = np.random.default_rng(5).standard_normal(640).astype("float32")
    signal = alone if comm.rank == owner else np.zeros(640, "float32")
    np.testing.assert_array_equal(vote(comm, signal, ties=ties), np.sign(alone))


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_nonfinite_abstains_in_its_chunk_alone(comm, rng, bad, ties, exchange):
    signal = rng.standard_normal(4096 * 3 + 100).astype("float32")
    if comm.rank == 0:
        signal[4096 + 5] = bad
        signal[-1] = bad
    before = hvd_sign.vote_stats().asdict()["nonfinite_chunks"]
    expected = reference.verdict(comm.allgather(signal), ties)
    got = vote(comm, signal, ties=ties, exchange=exchange)
    expected.check(got)
    found = hvd_sign.vote_stats().asdict()["nonfinite_chunks"] - before
    assert found == (2 if comm.rank == 0 else 0)
    if comm.size == 1:
        np.testing.assert_array_equal(got[4096:8192], 0)


def test_the_log_names_the_vote_that_met_nan(comm, monkeypatch, caplog, exchange, request):
    signal = np.ones(5000, "float32")
    name = request.node.name  # of no earlier vote
    options = {"name": name, "exchange": exchange}
    for _ in range(3):
        vote(comm, signal, **options)
    signal[4999] = np.nan
    monkeypatch.setattr("hvd_sign.rounds.base._abstention_told", False)
    with caplog.at_level(logging.WARNING, logger="hvd_sign"):
        vote(comm, signal, **options)
        vote(comm, signal, **options)
    assert caplog.messages == [
        f"rank {comm.rank} met NaN or Inf in 1 chunks of 4096 coordinates at step 3 of allreduce "
        f"{name!r}, which it does not vote on; vote_stats().nonfinite_chunks counts the others"
    ]


@pytest.mark.parametrize("ties", TIES)
def test_exchanges_agree_bit_for_bit(comm, rng, monkeypatch, ties):
    for length in (1, 64, 65, 4097, 100_003):
        signal = signals_with_everything(rng, length)
        held = []
        for exchange, inline in (("sharded", 256), ("sharded", -1), ("allgather", -1)):
            monkeypatch.setattr("hvd_sign.rounds.inline.MOST_BLOCKS", inline)
            options = {"name": f"same {length}", "step": 3, "seed": 9}
            held.append(vote(comm, signal, ties=ties, exchange=exchange, **options).tobytes())
        assert held[0] == held[1] == held[2]
