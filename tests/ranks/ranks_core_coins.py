"""Coins: fair, equal on all ranks, reproducible, independent."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
from mpi4py import MPI

import hvd_sign
from hvd_sign.runtime.communicators import communicator_streams

EVEN = pytest.mark.ranks(2)
COUNT = 40_000


def tied(comm: MPI.Intracomm, count: int = COUNT) -> np.ndarray:
    """A signal that ties everywhere: half of an even number of ranks against the other half."""
    return np.full(count, 1.0 if comm.rank % 2 else -1.0, dtype="float32")


@pytest.fixture
def even():
    """The largest even number of ranks; the last one of an odd number votes alone, unused."""
    world = MPI.COMM_WORLD
    size = world.size - world.size % 2
    comm = world.Split(0 if world.rank < size else 1, world.rank)
    yield comm
    comm.Free()


def coins(comm: MPI.Intracomm, **options) -> np.ndarray:
    """Coins of an all-tied vote, checked to be +-1 and the same on every rank."""
    got = hvd_sign.allreduce(tied(comm), comm=comm, **options)
    np.testing.assert_array_equal(np.abs(got), 1)
    assert len(set(comm.allgather(got.tobytes()))) == 1
    return got


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * second).mean())


@EVEN
def test_ties_by_policy(even):
    if even.size > 1:
        for exchange in ("sharded", "allgather"):
            signal = tied(even)
            zero = hvd_sign.allreduce(signal, comm=even, ties="zero", exchange=exchange)
            np.testing.assert_array_equal(zero, 0)
            positive = hvd_sign.allreduce(signal, comm=even, ties="positive", exchange=exchange)
            np.testing.assert_array_equal(positive, 1)
            coin = coins(even, exchange=exchange)
            assert abs(coin.mean()) < reference.coin_bound(COUNT)


@EVEN
def test_tie_coins_are_fair_and_depend_on_seed_step_and_name(even):
    if even.size == 1:
        return
    base = coins(even, name="a", seed=1, step=1)
    others = [
        coins(even, name="a", seed=2, step=1),
        coins(even, name="a", seed=1, step=2),
        coins(even, name="b", seed=1, step=1),
    ]
    assert abs(base.mean()) < reference.coin_bound(COUNT)
    for other in others:
        assert abs(other.mean()) < reference.coin_bound(COUNT)
        assert abs(agreement(base, other)) < reference.coin_bound(COUNT)
    assert base.tobytes() == coins(even, name="a", seed=1, step=1).tobytes()
    # Neighbouring coordinates are independent, within a word and from one word to the next.
    for lag in (1, 32, 63, 64, 65):
        assert abs(agreement(base[lag:], base[:-lag])) < reference.coin_bound(COUNT - lag)


@EVEN
def test_default_step_is_the_number_of_earlier_calls_under_the_name(even):
    if even.size == 1:
        return
    first, second = coins(even, name="counted"), coins(even, name="counted")
    assert abs(agreement(first, second)) < reference.coin_bound(COUNT)
    assert first.tobytes() == coins(even, name="counted", step=0).tobytes()
    assert second.tobytes() == coins(even, name="counted", step=1).tobytes()


@pytest.mark.ranks(2, 2)
def test_ranks_that_count_differently_agree_on_the_largest_number(exchange):
    """As where one of them has forgotten the name, and the other not yet."""
    comm = MPI.COMM_WORLD.Dup()
    signal = tied(comm, 5000)
    signal[::7] = 0  # zeros have coins of their own
    options = {"comm": comm, "exchange": exchange}
    hvd_sign.allreduce(signal, name="known", **options)
    communicator_streams.get(comm)._counts["known"] = [5, 9][comm.rank]
    for number in (9, 10, 11):
        got = hvd_sign.allreduce(signal, name="known", **options)
        wanted = hvd_sign.allreduce(signal, name="known", step=number, **options)
        assert got.tobytes() == wanted.tobytes()
        assert len(set(comm.allgather(got.tobytes()))) == 1
        communicator_streams.get(comm)._counts["known"] = number + 1
    comm.Free()


@EVEN
def test_ever_new_names_are_forgotten_and_coins_do_not_come_twice(monkeypatch):
    """Ranks ask for them in different orders, all at once: they forget at different moments."""
    monkeypatch.setattr("hvd_sign.runtime.named.KEPT_NAMES", 4)
    comm = MPI.COMM_WORLD.Dup()
    signal = tied(comm, 640)
    names = [f"name {number}" for number in range(12)]
    had: dict[str, list[bytes]] = {name: [] for name in names}

    def vote(name: str) -> None:
        had[name].append(hvd_sign.allreduce(signal, comm=comm, name=name).tobytes())

    with ThreadPoolExecutor(len(names)) as pool:
        for turn in range(6):
            random.Random(10 * turn + comm.rank).shuffle(names)
            list(pool.map(vote, names))
    assert len(communicator_streams.get(comm)._counts) == 4
    for name in sorted(names):
        if comm.size % 2 == 0:
            assert len(set(had[name])) == 6
        assert len(set(comm.allgather(b"".join(had[name])))) == 1
    comm.Free()


def test_zeros_of_all_ranks_in_a_live_block_are_coins(comm, exchange):
    """Inside a block with one non-zero value all the others are decided by coins, +-1."""
    signal = np.zeros(64 * 600, dtype="float32")
    signal[::64] = 1.0
    got = hvd_sign.allreduce(signal, comm=comm, exchange=exchange, name="zeros", step=0)
    np.testing.assert_array_equal(np.abs(got), 1)
    np.testing.assert_array_equal(got[::64], 1)
    rest = got.reshape(-1, 64)[:, 1:]
    assert abs(rest.mean()) < reference.coin_bound(rest.size)
    assert len(set(comm.allgather(got.tobytes()))) == 1


@pytest.mark.ranks(3, 3)
def test_zeros_of_two_ranks_cancel():
    """Ranks 0 and 1 are zero: the third decides alone, every time."""
    comm = MPI.COMM_WORLD
    other = np.where(np.arange(6400) % 3 == 0, -1.0, 1.0).astype("float32")
    signal = other if comm.rank == 2 else np.zeros(6400, dtype="float32")
    if comm.rank < 2:
        signal[::64] = 1.0  # keeps their blocks active
    for step in range(4):
        got = hvd_sign.allreduce(signal, name="cancel", step=step)
        silent = np.arange(6400) % 64 != 0
        np.testing.assert_array_equal(got[silent], other[silent])


@pytest.mark.ranks(2, 2)
def test_zero_coins_and_tie_coins_are_independent():
    """Rank 0 is zero, rank 1 positive: the zero's coin gives +1 or a tie, and the tie its own coin.

    So +1 in three of four; were the streams one, it would be one half or all.
    """
    comm = MPI.COMM_WORLD
    signal = np.zeros(64 * 1000, dtype="float32") if comm.rank == 0 else np.ones(64_000, "float32")
    signal[::64] = 1.0
    got = hvd_sign.allreduce(signal, name="streams", step=0)
    silent = np.arange(got.size) % 64 != 0
    share = (got[silent] == 1).mean()
    assert abs(share - 0.75) < reference.coin_bound(silent.sum())
    assert len(set(comm.allgather(got.tobytes()))) == 1


def test_odd_votes_do_not_depend_on_the_coin(comm, rng):
    if comm.size % 2 == 0:
        return
    signal = rng.standard_normal(5000).astype("float32")
    first = hvd_sign.allreduce(signal, comm=comm, seed=1, name="odd")
    second = hvd_sign.allreduce(signal, comm=comm, seed=2, name="odd")
    assert first.tobytes() == second.tobytes()
