"""One vote a node: equal to the numpy model on all layouts, and to `sharded` with lone ranks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import hierarchy
import numpy as np
import pytest
import reference
from mpi4py import MPI

import hvd_sign

TIES = ("coin", "zero", "positive")
LOCAL = ("vote", "mean")
LAYOUTS = {
    "pairs": lambda rank: rank // 2,
    "threes": lambda rank: rank // 3,
    "one by one": lambda rank: rank % 2,
    "first alone": lambda rank: min(rank, 1),
    "one node": lambda rank: 0,
    "alone": lambda rank: rank,
}
DTYPES = ["float16", "float64", *(["bfloat16"] if importlib.util.find_spec("ml_dtypes") else [])]
LENGTHS = (0, 1, 65, 4097, 30_001)


@pytest.fixture(params=LAYOUTS)
def layout(request, monkeypatch) -> Iterator[tuple[MPI.Intracomm, list[str]]]:
    """A communicator whose ranks are told to be on nodes, and every rank's node."""
    node_of = LAYOUTS[request.param]
    names = [f"node {node_of(rank)}" for rank in range(MPI.COMM_WORLD.size)]
    monkeypatch.setenv("HVD_SIGN_NODE", names[MPI.COMM_WORLD.rank])
    comm = MPI.COMM_WORLD.Dup()
    yield comm, names
    comm.Free()


def rough(rng: np.random.Generator, length: int, dtype: str = "float32") -> np.ndarray:
    """Small integers, so that votes tie and sums vanish; dead blocks, zeros of both signs."""
    values = rng.integers(-2, 3, length).astype(dtype)
    values[rng.random(length) < 0.1] = -0.0
    for start in range(0, length, 64):
        if rng.random() < 0.2:
            values[start : start + 64] = 0
    return values


def check(layout, signal: np.ndarray, ties: str, local: str, **options) -> np.ndarray:
    comm, names = layout
    wanted = hierarchy.verdict(
        comm.allgather(signal), names, ties, local, name="gradient", seed=7, step=3
    )
    got = hvd_sign.allreduce(
        signal,
        comm=comm,
        exchange="hierarchical",
        ties=ties,
        local=local,
        name="gradient",
        seed=7,
        step=3,
        **options,
    )
    assert got.dtype == signal.dtype
    np.testing.assert_array_equal(got.reshape(-1).astype("float64"), wanted)
    assert len(set(comm.allgather(got.tobytes()))) == 1
    return got


@pytest.mark.parametrize("local", LOCAL)
@pytest.mark.parametrize("ties", TIES)
def test_verdict_of_the_nodes(layout, rng, ties, local):
    for length in LENGTHS:
        check(layout, rough(rng, length), ties, local)


@pytest.mark.parametrize("local", LOCAL)
@pytest.mark.parametrize("ties", TIES)
def test_signals_with_fractions(layout, rng, ties, local):
    check(layout, rng.standard_normal((70, 90)).astype("float32"), ties, local)


@pytest.mark.parametrize("local", LOCAL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_floating_types(layout, rng, dtype, local):
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    signal = (rng.standard_normal(5000) * 100).astype(dtype)
    check(layout, signal, "coin", local)
    check(layout, rough(rng, 5000, dtype), "zero", local)


@pytest.mark.parametrize("local", LOCAL)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_abstains_in_its_chunk_alone(layout, rng, bad, local):
    comm, _ = layout
    signal = rough(rng, 4096 * 3 + 100)
    if comm.rank == 0:
        signal[5000] = signal[-1] = bad
    if comm.rank == comm.size - 1:
        signal[0] = bad
    before = hvd_sign.vote_stats().nonfinite_chunks
    check(layout, signal, "zero", local)
    found = hvd_sign.vote_stats().nonfinite_chunks - before
    assert found == 2 * (comm.rank == 0) + (comm.rank == comm.size - 1)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("scale", ["none", "mean_abs"])
@pytest.mark.parametrize("local", LOCAL)
def test_lone_ranks_vote_as_sharded_bit_for_bit(rng, monkeypatch, local, scale, ties):
    monkeypatch.setenv("HVD_SIGN_NODE", str(MPI.COMM_WORLD.rank))
    comm = MPI.COMM_WORLD.Dup()
    for length in LENGTHS:
        signal = rough(rng, length)
        options = {"comm": comm, "scale": scale, "ties": ties, "name": "same", "step": 1}
        before = hvd_sign.vote_stats().payload_bytes
        sharded = hvd_sign.allreduce(signal, exchange="sharded", **options)
        between = hvd_sign.vote_stats().payload_bytes
        mine = hvd_sign.allreduce(signal, exchange="hierarchical", local=local, **options)
        after = hvd_sign.vote_stats().payload_bytes
        assert mine.tobytes() == sharded.tobytes()
        if length == 30_001:
            # A pipeline of one segment adds one message for the scales.
            assert after - between <= between - before
    comm.Free()


@pytest.mark.parametrize("local", LOCAL)
def test_scale_mean_abs_counts_each_node_once(layout, rng, local):
    comm, names = layout
    signal = (rng.standard_normal(9000) * (1 + comm.rank)).astype("float32")
    options = {"comm": comm, "exchange": "hierarchical", "name": "gradient", "seed": 7, "step": 3}
    got = hvd_sign.allreduce(signal, ties="zero", scale="mean_abs", local=local, **options)
    signals = comm.allgather(signal)
    wanted = hierarchy.verdict(signals, names, "zero", local, name="gradient", seed=7, step=3)
    np.testing.assert_allclose(got, wanted * hierarchy.mean_abs(signals, names), rtol=1e-5)


def test_scale_leaves_out_a_node_without_finite_numbers(monkeypatch):
    """Ranks 0 and 1 share a node and meet nothing but NaN: the others' scale is the scale."""
    world = MPI.COMM_WORLD
    node = max(world.rank, 1)
    monkeypatch.setenv("HVD_SIGN_NODE", str(node))
    comm = world.Dup()
    signal = np.full(300, np.nan if node == 1 else -3.0 * node, dtype="float32")
    options = {"comm": comm, "exchange": "hierarchical", "scale": "mean_abs"}
    got = hvd_sign.allreduce(signal, **options)
    others = [3.0 * other for other in range(2, world.size)]
    np.testing.assert_allclose(got, -reference.lower_median(others), rtol=1e-6)
    comm.Free()


@pytest.mark.ranks(5)
@pytest.mark.parametrize("local", LOCAL)
def test_ties_of_two_nodes_cancel(monkeypatch, local):
    """Both pairs tie everywhere: whatever the coins, a lone rank on a third node decides."""
    world = MPI.COMM_WORLD
    part = world.Split(0 if world.rank < 5 else 1, world.rank)
    if world.rank < 5:
        monkeypatch.setenv("HVD_SIGN_NODE", str(world.rank // 2))
        comm = part.Dup()
        lone = np.where(np.arange(9000) % 3, 1.0, -1.0).astype("float32")
        signal = np.full(9000, (-1.0) ** comm.rank, dtype="float32")
        if comm.rank == 4:
            signal = lone.copy()
        if local == "mean":
            signal[::64] = lone[::64] * (comm.rank + 1)
        got = hvd_sign.allreduce(signal, comm=comm, exchange="hierarchical", local=local)
        np.testing.assert_array_equal(got, lone)
        comm.Free()
    part.Free()


@pytest.mark.parametrize("local", LOCAL)
@pytest.mark.ranks(3, 3)
def test_bytes_sent(rng, monkeypatch, local):
    """Ranks 0 and 1 share a node. Counted is what a rank sends, inside its node too."""
    monkeypatch.setenv("HVD_SIGN_NODE", str(MPI.COMM_WORLD.rank // 2))
    comm = MPI.COMM_WORLD.Dup()
    size = 1_000_000
    signal = rng.standard_normal(size).astype("float32")
    before = hvd_sign.vote_stats().payload_bytes
    hvd_sign.allreduce(signal, comm=comm, exchange="hierarchical", local=local)
    sent = hvd_sign.vote_stats().payload_bytes - before
    ballot = size / 8
    # Half a ballot and half a verdict to the other node; a whole verdict, or ballot, inside.
    wanted = [ballot + ballot, ballot if local == "vote" else 4 * size, ballot][comm.rank]
    assert wanted <= sent <= 1.02 * wanted
    comm.Free()


def test_ranks_of_one_machine_share_a_node_unless_told_otherwise(rng, monkeypatch):
    monkeypatch.delenv("HVD_SIGN_NODE", raising=False)
    comm = MPI.COMM_WORLD.Dup()
    check((comm, ["this machine"] * comm.size), rough(rng, 3000), "coin", "vote")
    # Who says nothing shares no node with those who do.
    if comm.rank == 0:
        monkeypatch.setenv("HVD_SIGN_NODE", "0")
    other = MPI.COMM_WORLD.Dup()
    names = ["the first", *["the others"] * (comm.size - 1)]
    check((other, names), rough(rng, 3000), "coin", "mean")
    for each in (comm, other):
        each.Free()


def test_parts_of_a_node(rng, monkeypatch):
    """Communicators of half the ranks have nodes of their own."""
    world = MPI.COMM_WORLD
    monkeypatch.setenv("HVD_SIGN_NODE", str(world.rank // 3))
    part = world.Split(world.rank % 2, -world.rank)
    names = part.allgather(str(world.rank // 3))
    for _ in range(2):
        check((part, names), rough(rng, 3000), "coin", "vote")
    part.Free()


def test_options_that_need_another_exchange():
    signal = np.ones(3, dtype="float32")
    for options, sentence in (
        ({"local": "mean"}, "local: 'mean' needs exchange='hierarchical' or 'auto', got 'sharded'"),
        ({"local": "median", "exchange": "hierarchical"}, "local: expected one of 'vote', 'mean'"),
        ({"fallback": "allreduce"}, "fallback: 'allreduce' needs exchange='auto', got 'sharded'"),
        ({"fallback": "guess", "exchange": "auto"}, "fallback: expected one of 'allreduce', got"),
        ({"exchange": "dense"}, "exchange: expected one of 'sharded', 'allgather', 'hierarchical'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            hvd_sign.allreduce(signal, **options)


@pytest.mark.ranks(2)
def test_ranks_that_mean_another_ballot_are_told_alike(world):
    local = "mean" if world.rank else "vote"
    with pytest.raises(ValueError, match="local differs between ranks: vote on rank 0; mean on"):
        hvd_sign.allreduce(np.ones(3, "float32"), exchange="hierarchical", local=local)
