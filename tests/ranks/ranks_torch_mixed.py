"""Votes among Horovod's own collectives: named, unnamed, in any order, through either module."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch
from helpers import expected, other_module, plain, same_everywhere, values


def tensors(world, count: int, seed: int) -> list[torch.Tensor]:
    return [values(seed + 1000 * i + world.rank, 50 + 30 * i) for i in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_named_votes_in_another_order_on_each_rank(hvd, world, seed):
    given = tensors(world, 12, seed)
    wanted = [expected(world, tensor, "zero") for tensor in given]
    order = random.Random(100 * seed + world.rank)
    submitted, waited = list(range(12)), list(range(12))
    order.shuffle(submitted)
    order.shuffle(waited)
    handles = {}
    for i in submitted:
        name = f"shuffled {i}"
        handles[i] = hvd.allreduce_async(given[i], name=name, op=hvd.MajorityVote, ties="zero")
        if order.random() < 0.3:
            time.sleep(0.003)
    for i in waited:
        wanted[i].check(plain(hvd.synchronize(handles[i])))


def test_unnamed_votes_are_matched_in_order(hvd, world):
    given = tensors(world, 8, 50)
    wanted = [expected(world, tensor, "zero") for tensor in given]
    handles = [hvd.allreduce_async(t, op=hvd.MajorityVote, ties="zero") for t in given]
    order = random.Random(world.rank)
    for i in order.sample(range(8), 8):
        wanted[i].check(plain(hvd.synchronize(handles[i])))


def test_a_named_vote_may_pass_an_unnamed_one(hvd, world):
    unnamed, with_name = values(world.rank, 70), values(9 + world.rank, 90)
    wanted = [expected(world, tensor, "zero") for tensor in (unnamed, with_name)]

    def vote(tensor, **options):
        return hvd.allreduce_async(tensor, op=hvd.MajorityVote, ties="zero", **options)

    if world.rank % 2:
        second = vote(with_name, name="passing")
        first = vote(unnamed)
    else:
        first = vote(unnamed)
        second = vote(with_name, name="passing")
    wanted[0].check(plain(hvd.synchronize(first)))
    wanted[1].check(plain(hvd.synchronize(second)))


def test_slow_rank_holds_up_nobody_elses_horovod(hvd, world):
    """A vote that one rank has not joined yet leaves Horovod's collectives alone."""
    tensor = values(world.rank, 40)
    want = expected(world, tensor, "zero")
    late = world.rank == world.size - 1
    if not late:
        handle = hvd.allreduce_async(tensor, name="late", op=hvd.MajorityVote, ties="zero")
    total = hvd.allreduce(torch.ones(3), op=hvd.Sum, name="meanwhile")
    np.testing.assert_array_equal(plain(total), world.size)
    if late:
        handle = hvd.allreduce_async(tensor, name="late", op=hvd.MajorityVote, ties="zero")
    want.check(plain(hvd.synchronize(handle)))


class Program:
    """A random program of collectives: the unnamed ones in the same order on every rank."""

    def __init__(self, hvd, world, seed: int) -> None:
        self.hvd, self.plain, self.world = hvd, other_module(hvd), world
        self.shared = random.Random(seed)  # the same choices on every rank
        self.own = random.Random(1000 * seed + world.rank)
        self.pending: list[tuple] = []
        self.count = 0

    def start(self, kind: str, name: str | None, module) -> None:
        self.count += 1
        tensor = values(17 * self.count + self.world.rank, 10 + self.count)
        gathered = self.world.allgather(plain(tensor))
        if kind == "vote":
            want = expected(self.world, tensor, "zero")
            options = {"op": self.hvd.MajorityVote, "ties": "zero", "name": name}
            handle = self.hvd.allreduce_async(tensor, **options)
            self.pending.append((handle, lambda got: want.check(plain(got)), self.hvd))
            return
        if kind == "sum":
            handle, want = module.allreduce_async(tensor, op=module.Sum, name=name), sum(gathered)
        elif kind == "gather":
            handle, want = module.allgather_async(tensor, name=name), np.concatenate(gathered)
        elif kind == "broadcast":
            handle, want = module.broadcast_async(tensor, 0, name=name), gathered[0]
        elif kind == "group":
            both = [tensor, tensor]
            handle = module.grouped_allreduce_async(both, op=module.Sum, name=name)
            want = np.array([sum(gathered)] * 2)
        self.pending.append((handle, lambda got: self.close(got, want), module))

    @staticmethod
    def close(got, want: np.ndarray) -> None:
        got = np.array([plain(g) for g in got]) if isinstance(got, list | tuple) else plain(got)
        np.testing.assert_allclose(got, want, atol=1e-4)

    def finish(self) -> None:
        """Waits for everything, in an order of this rank's own, through either module."""
        self.own.shuffle(self.pending)
        for handle, check, module in self.pending:
            check(module.synchronize(handle))
        self.pending.clear()

    def run(self, steps: int) -> None:
        for step in range(steps):
            batch = []
            for i in range(self.shared.randint(1, 6)):
                kind = self.shared.choice(["vote", "vote", "sum", "gather", "broadcast", "group"])
                through = self.shared.choice([self.hvd, self.plain])
                name = self.shared.choice([None, f"step {step} number {i}"])
                batch.append((kind, name, through))
            for kind, name, module in batch:
                self.start(kind, name, module)
                if self.own.random() < 0.2:
                    time.sleep(0.002)
            if self.shared.random() < 0.7:
                self.finish()
        self.finish()


@pytest.mark.parametrize("seed", range(4))
def test_random_programs_with_horovods_collectives(hvd, world, seed):
    Program(hvd, world, seed).run(12)


def test_votes_do_not_shift_horovods_unnamed_operations(hvd, world):
    """A rank that voted more often than another still matches its unnamed operations."""
    extra = hvd.add_process_set([0]) if world.size > 1 else None
    if world.rank == 0:
        for _ in range(3):
            options = {"process_set": extra} if extra else {}
            hvd.allreduce(torch.ones(5), op=hvd.MajorityVote, **options)
    for module in (hvd, other_module(hvd)):
        got = module.allreduce(torch.full((4,), float(world.rank)), op=module.Sum)
        np.testing.assert_array_equal(plain(got), sum(range(world.size)))
    if extra:
        assert hvd.remove_process_set(extra)


def test_same_name_twice_in_flight_is_an_error(hvd, world):
    first = values(world.rank, 100_000)
    want = expected(world, first, "zero")
    handles = []
    if world.rank == 0 and world.size > 1:  # in flight for certain: the others have not begun
        handles.append(hvd.allreduce_async(first, name="twice", op=hvd.MajorityVote, ties="zero"))
        with pytest.raises((ValueError, RuntimeError), match="twice"):
            handles.append(hvd.allreduce_async(first, name="twice", op=hvd.MajorityVote))
    world.Barrier()
    if not handles:
        handles.append(hvd.allreduce_async(first, name="twice", op=hvd.MajorityVote, ties="zero"))
    want.check(plain(hvd.synchronize(handles[0])))
    again = hvd.allreduce(first, name="twice", op=hvd.MajorityVote, ties="zero")
    want.check(plain(again))


def test_many_votes_in_flight(hvd, world):
    given = [values(i + 50 * world.rank, 1000) for i in range(60)]
    named = [
        hvd.allreduce_async(t, name=f"flight {i}", op=hvd.MajorityVote) for i, t in enumerate(given)
    ]
    results = [hvd.synchronize(handle) for handle in named]
    for tensor, result in zip(given, results, strict=True):
        expected(world, tensor).check(plain(result))
    assert same_everywhere(world, *results)


def test_votes_and_sums_of_one_name_are_different_things(hvd, world):
    tensor = values(world.rank, 33)
    want = expected(world, tensor, "zero")
    for _ in range(3):
        total = hvd.allreduce(tensor, name="shared name", op=hvd.Sum)
        vote = hvd.allreduce(tensor, name="shared name", op=hvd.MajorityVote, ties="zero")
        want.check(plain(vote))
        np.testing.assert_allclose(plain(total), sum(world.allgather(plain(tensor))), atol=1e-4)
