"""Ranks with unequal work: join() beside votes."""

from __future__ import annotations

import time

import numpy as np
import pytest
import reference
import torch
from helpers import backward, gradients, named, parameters, plain, same_everywhere

SHAPES = ((64, 10), (10,), (), (500,))


def of_those_who_work(params: list, turn: int, working: list[bool]) -> list[reference.Expected]:
    """The verdict of this turn; who does not work abstains, which is what zeros do."""
    everyone = [
        [plain(g) * works for g in gradients(rank, params, turn)]
        for rank, works in enumerate(working)
    ]
    return [reference.verdict(list(signals), "coin") for signals in zip(*everyone, strict=True)]


@pytest.mark.parametrize("exchange", ["sharded", "allgather"])
@pytest.mark.parametrize("bucket_bytes", [300, 25 << 20])
def test_joined_ranks_abstain(hvd, world, exchange, bucket_bytes):
    """Rank r has r + 1 batches: each turn one rank fewer votes."""
    params = parameters(*SHAPES)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(params, lr=0.5),
        named_parameters=named(params),
        op=hvd.MajorityVote,
        exchange=exchange,
        bucket_bytes=bucket_bytes,
    )
    for turn in range(world.rank + 1):
        wanted = of_those_who_work(params, turn, [turn <= rank for rank in range(world.size)])
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        for p, want in zip(params, wanted, strict=True):
            want.check(plain(p.grad))
        optimizer.zero_grad()
    last = hvd.join()
    assert last == world.size - 1
    total = hvd.allreduce(torch.ones(3), op=hvd.Sum)  # unnamed: numbered alike on all ranks still
    np.testing.assert_array_equal(plain(total), world.size)
    hvd.broadcast_parameters(dict(named(params)), root_rank=last)
    wanted = of_those_who_work(params, 50, [True] * world.size)
    backward(params, gradients(world.rank, params, 50))
    optimizer.step()
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))
    assert same_everywhere(world, *params)


@pytest.mark.ranks(2)
def test_single_vote_that_a_joined_rank_cannot_serve_says_so(hvd, world):
    if world.rank != 0:
        with pytest.raises((RuntimeError, ValueError), match="join"):
            hvd.allreduce(torch.ones(5), name="unserved", op=hvd.MajorityVote)
    hvd.join()
    got = hvd.allreduce(torch.ones(5), name="served", op=hvd.MajorityVote)
    np.testing.assert_array_equal(plain(got), 1)


def test_join_again_and_again(hvd, world):
    params = parameters((100,))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(params, lr=0.5), named(params), op=hvd.MajorityVote
    )
    for epoch in range(3):
        for _ in range(1 + (world.rank + epoch) % 2):
            backward(params, gradients(world.rank, params, epoch))
            optimizer.step()
            optimizer.zero_grad()
        hvd.broadcast_parameters(dict(named(params)), root_rank=hvd.join())
        assert same_everywhere(world, *params)


def test_as_horovod_takes_and_returns_it(hvd, world):
    """With the device of its zeros; back comes the rank that was last, as a number."""
    for given in ({}, {"device": -1}):
        world.Barrier()
        if world.rank == 0:
            time.sleep(1)
        last = hvd.join(**given)
        assert type(last) is int
        assert last == 0
