"""What a vote sends and counts, and how it lives beside a user's own messages."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from mpi4py import MPI

import hvd_sign


def counted(call) -> dict[str, float]:
    before = hvd_sign.vote_stats().asdict()
    call()
    after = hvd_sign.vote_stats().asdict()
    return {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("ties", ["coin", "positive"])
@pytest.mark.parametrize("length", [1_000_000, 1_000_003, 3_000_064])
def test_sharded_sends_two_bits_a_coordinate_at_most(rng, length, ties):
    comm = MPI.COMM_WORLD
    signal = rng.standard_normal(length).astype("float32")
    stats = counted(lambda: hvd_sign.allreduce(signal, ties=ties, exchange="sharded"))
    ideal = 2 * (comm.size - 1) / comm.size * length / 8
    assert 0.98 * ideal <= stats["payload_bytes"] <= 1.02 * ideal
    assert stats["votes"] == 1


def test_allgather_sends_a_bit_a_coordinate_to_every_other_rank(rng):
    comm = MPI.COMM_WORLD
    signal = rng.standard_normal(1_000_000).astype("float32")
    stats = counted(lambda: hvd_sign.allreduce(signal, exchange="allgather"))
    ideal = (comm.size - 1) * signal.size / 8
    assert 0.98 * ideal <= stats["payload_bytes"] <= 1.02 * ideal


@pytest.mark.ranks(2)
@pytest.mark.parametrize("planes", [1, 2])
def test_an_inline_ballot_goes_to_voter_0_and_one_verdict_comes_back(rng, planes):
    """64-byte header, 8 bytes a block and plane, an activity word per 64 blocks, to 64 bytes."""
    comm = MPI.COMM_WORLD
    signal = rng.standard_normal(256 * 64).astype("float32")  # the largest that is inline
    ties = "zero" if planes == 2 else "coin"
    stats = counted(lambda: hvd_sign.allreduce(signal, ties=ties))
    least = 256 * 8 * planes + 4 * 8
    messages = comm.size - 1 if comm.rank == 0 else 1
    assert messages * least <= stats["payload_bytes"] <= messages * (least + 128)
    assert stats["votes"] == 1
    larger = rng.standard_normal(signal.size + 1).astype("float32")
    stats = counted(lambda: hvd_sign.allreduce(larger, ties=ties))
    two_ways = 2 * (comm.size - 1) / comm.size * least
    assert two_ways <= stats["payload_bytes"] <= two_ways + 2 * comm.size * 128


@pytest.mark.ranks(2)
def test_inline_votes_of_one_shape_side_by_side(rng, world):
    """Each gets its own verdict, whatever the order in which ranks ask."""
    names = [f"small {number}" for number in range(20)]
    signals = {name: rng.standard_normal(100).astype("float32") for name in names}
    results: dict[str, np.ndarray] = {}

    def votes(part: list[str]) -> None:
        for name in part:
            results[name] = hvd_sign.allreduce(signals[name], name=name, ties="zero")

    parts = [names[:5], names[5:10], names[10:15], names[15:]]
    turned = parts[world.rank % 4 :] + parts[: world.rank % 4]
    threads = [threading.Thread(target=votes, args=(part,)) for part in turned]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        total = np.sign(world.allgather(signals[name])).sum(0)
        np.testing.assert_array_equal(results[name], np.sign(total), err_msg=name)


def test_zero_policy_sends_twice_as_much(rng):
    comm = MPI.COMM_WORLD
    signal = rng.standard_normal(1_000_000).astype("float32")
    stats = counted(lambda: hvd_sign.allreduce(signal, ties="zero"))
    ideal = 4 * (comm.size - 1) / comm.size * signal.size / 8
    assert 0.98 * ideal <= stats["payload_bytes"] <= 1.02 * ideal


def test_stats_have_every_field_and_grow():
    signal = np.ones(100_000, dtype="float32")
    stats = counted(lambda: hvd_sign.allreduce(signal))
    names = "votes payload_bytes pack_seconds exchange_seconds tally_seconds apply_seconds"
    names += " wait_seconds ties nonfinite_chunks skipped_steps"
    assert set(names.split()) <= set(stats)
    assert all(value >= 0 for value in stats.values())
    assert stats["pack_seconds"] > 0
    assert stats["ties"] == stats["nonfinite_chunks"] == stats["skipped_steps"] == 0


def test_ties_are_counted(world):
    signal = np.full(10_000, 1.0 if world.rank % 2 else -1.0, dtype="float32")
    stats = counted(lambda: hvd_sign.allreduce(signal, exchange="sharded"))
    total = world.allreduce(stats["ties"])
    assert total == (10_000 if world.size % 2 == 0 else 0)


@pytest.mark.ranks(2)
def test_votes_never_meet_the_users_messages(rng, world):
    comm = MPI.COMM_WORLD
    inbox = np.zeros(1, dtype="int64")
    request = comm.Irecv(inbox, source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
    for exchange in ("sharded", "allgather"):
        signal = rng.standard_normal(1000).astype("float32")
        hvd_sign.allreduce(signal, exchange=exchange)
    assert not request.Test()
    world.Barrier()
    comm.Send(np.array([comm.rank + 100], dtype="int64"), dest=(comm.rank + 1) % comm.size, tag=3)
    request.Wait()
    assert inbox[0] == (comm.rank - 1) % comm.size + 100


@pytest.mark.ranks(2)
def test_nonblocking_collectives_of_the_user_around_a_vote(rng):
    comm = MPI.COMM_WORLD
    one, total = np.ones(1), np.zeros(1)
    request = comm.Iallreduce(one, total)
    got = hvd_sign.allreduce(np.full(100, -1.0, dtype="float32"))
    request.Wait()
    assert total[0] == comm.size
    np.testing.assert_array_equal(got, -1)


def test_split_communicators(world, rng):
    """Each part votes alone, at its own pace, with its own ranks."""
    colour = world.rank % 2
    part = MPI.COMM_WORLD.Split(colour, -world.rank)  # and in the opposite order
    for turn in range(3 + colour):  # not the same number of votes either
        signal = np.full(300, 1.0 if colour else -1.0, dtype="float32")
        got = hvd_sign.allreduce(signal, comm=part, ties="zero")
        np.testing.assert_array_equal(got, signal, err_msg=f"turn {turn}")
    part.Free()


def test_communicators_that_come_and_go(world):
    """A freed communicator's handle may be used again for other ranks."""
    for turn in range(12):
        size = turn % world.size + 1
        part = MPI.COMM_WORLD.Split(0 if world.rank < size else 1, world.rank)
        signal = np.full(100, part.size, dtype="float32")
        signal[50:] = -1.0
        got = hvd_sign.allreduce(signal, comm=part, ties="zero", name="again")
        np.testing.assert_array_equal(got, np.sign(signal))
        part.Free()


def test_two_threads_vote_on_two_communicators(rng):
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return
    comms = [MPI.COMM_WORLD.Dup(), MPI.COMM_WORLD.Dup()]
    signals = [np.full(50_000, sign, dtype="float32") for sign in (1.0, -1.0)]
    results: list[list[np.ndarray]] = [[], []]

    def votes(which: int) -> None:
        for _ in range(5):
            results[which].append(hvd_sign.allreduce(signals[which], comm=comms[which]))

    threads = [threading.Thread(target=votes, args=(which,)) for which in (0, 1)]
    if MPI.COMM_WORLD.rank % 2:
        threads.reverse()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in (0, 1):
        assert len(results[which]) == 5
        for got in results[which]:
            np.testing.assert_array_equal(got, signals[which])
    for comm in comms:
        comm.Free()
