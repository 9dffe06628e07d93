"""Votes of a part of the ranks, several optimizers at once, and ranks that disagree."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from alike import refused_alike
from helpers import (
    backward,
    expected,
    gradients,
    named,
    parameters,
    plain,
    same_everywhere,
    values,
)

SHAPES = ((64, 10), (10,), (5000,))


@contextmanager
def process_sets(hvd, *rank_lists: list[int]):
    sets = [hvd.add_process_set(ranks) for ranks in rank_lists]
    try:
        yield sets
    finally:
        for each in sets:
            hvd.remove_process_set(each)


def halves(world) -> list[list[int]]:
    return [list(range(0, world.size, 2)), list(range(1, world.size, 2))]


def wrap(hvd, params: list, **options):
    options.setdefault("named_parameters", named(params))
    optimizer = torch.optim.SGD(params, lr=options.pop("lr", 0.5))
    return hvd.DistributedOptimizer(optimizer, op=hvd.MajorityVote, **options)


def step(world, params: list, optimizer, given: list) -> None:
    wanted = [expected(world, g) for g in given]
    backward(params, given)
    optimizer.step()
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))
    assert same_everywhere(world, *params)
    optimizer.zero_grad()


@pytest.mark.ranks(2)
def test_allreduce_in_process_sets(hvd, world):
    part = world.Split(world.rank % 2, world.rank)
    with process_sets(hvd, *[half for half in halves(world) if half]) as sets:
        mine = sets[world.rank % 2]
        tensor = values(world.rank, 900)
        want = expected(part, tensor, "zero")
        options = {"op": hvd.MajorityVote, "ties": "zero", "process_set": mine}
        want.check(plain(hvd.allreduce(tensor, **options)))
        want.check(plain(hvd.synchronize(hvd.allreduce_async(tensor, name="half", **options))))
        for got in hvd.grouped_allreduce([tensor, tensor], **options):
            want.check(plain(got))
        # The halves at paces of their own, then everybody.
        for _ in range(1 + world.rank % 2):
            hvd.allreduce(tensor, **options)
        want = expected(world, tensor, "zero")
        want.check(plain(hvd.allreduce(tensor, op=hvd.MajorityVote, ties="zero")))
    part.Free()


@pytest.mark.ranks(2)
def test_same_name_in_two_process_sets(hvd, world):
    part = world.Split(world.rank % 2, world.rank)
    with process_sets(hvd, *halves(world)) as sets:
        tensor, other = values(world.rank, 70), values(5 + world.rank, 80)
        wanted = expected(part, tensor, "zero"), expected(world, other, "zero")
        options = {"op": hvd.MajorityVote, "ties": "zero", "name": "one name"}
        of_half = hvd.allreduce_async(tensor, process_set=sets[world.rank % 2], **options)
        of_all = hvd.allreduce_async(other, **options)
        wanted[1].check(plain(hvd.synchronize(of_all)))
        wanted[0].check(plain(hvd.synchronize(of_half)))
    part.Free()


@pytest.mark.ranks(2)
def test_rank_outside_the_process_set_is_refused(hvd, world):
    with process_sets(hvd, [0]) as (alone,):
        if world.rank == 0:
            got = hvd.allreduce(torch.tensor([2.0, -3.0]), op=hvd.MajorityVote, process_set=alone)
            np.testing.assert_array_equal(plain(got), [1, -1])
        else:
            with pytest.raises((ValueError, RuntimeError), match=r"process.set"):
                hvd.allreduce(torch.ones(2), op=hvd.MajorityVote, process_set=alone)
    got = hvd.allreduce(torch.ones(2), op=hvd.MajorityVote)
    np.testing.assert_array_equal(plain(got), 1)


@pytest.mark.ranks(2)
def test_optimizers_of_process_sets(hvd, world):
    """Each half trains a model of its own, one of them for longer."""
    part = world.Split(world.rank % 2, world.rank)
    with process_sets(hvd, *halves(world)) as sets:
        params = parameters(*SHAPES)
        optimizer = wrap(hvd, params, process_set=sets[world.rank % 2])
        for turn in range(2 + world.rank % 2):
            step(part, params, optimizer, gradients(world.rank, params, turn))
    part.Free()


@pytest.mark.ranks(3)
def test_member_and_outsider_of_an_optimizers_process_set(hvd, world):
    """An outsider's step is its own, as Horovod has it."""
    inside = world.rank < 2
    part = world.Split(int(inside), world.rank)
    with process_sets(hvd, [0, 1]) as (pair,):
        params = parameters(*SHAPES)
        optimizer = wrap(hvd, params, process_set=pair)
        given = gradients(world.rank, params)
        if inside:
            step(part, params, optimizer, given)
        else:
            before = [plain(p) for p in params]
            backward(params, given)
            optimizer.step()
            for p, g, old in zip(params, given, before, strict=True):
                np.testing.assert_array_equal(plain(p.grad), plain(g))
                np.testing.assert_allclose(plain(p), old - 0.5 * plain(g), atol=1e-6)
    part.Free()


def test_two_optimizers_alternate(hvd, world):
    """As a GAN's do, the second with other parameters and another rate."""
    first, second = parameters(*SHAPES), parameters((33,), (1000,))
    optimizers = wrap(hvd, first), wrap(hvd, second, named_parameters=None, lr=0.1)
    for turn in range(3):
        step(world, first, optimizers[0], gradients(world.rank, first, turn))
        step(world, second, optimizers[1], gradients(world.rank, second, 10 + turn))
    step(world, first, optimizers[0], gradients(world.rank, first, 5))


def test_two_optimizers_in_flight_together(hvd, world):
    """One backward pass feeds both; ranks step them in different order."""
    first, second = parameters(*SHAPES), parameters((33,), (1000,))
    optimizers = [wrap(hvd, first), wrap(hvd, second)]
    for turn in range(3):
        given = gradients(world.rank, first + second, turn)
        wanted = [expected(world, g) for g in given]
        backward(first + second, given)
        order = [0, 1] if (world.rank + turn) % 2 else [1, 0]
        for which in order:
            optimizers[which].step()
        for p, want in zip(first + second, wanted, strict=True):
            want.check(plain(p.grad))
        assert same_everywhere(world, *first, *second)
        for optimizer in optimizers:
            optimizer.zero_grad()


def test_optimizer_and_single_votes_in_flight_together(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, bucket_bytes=300)
    tensor = values(world.rank, 500)
    single = expected(world, tensor, "zero")
    for turn in range(3):
        given = gradients(world.rank, params, turn)
        wanted = [expected(world, g) for g in given]
        if world.rank % 2:
            handle = hvd.allreduce_async(tensor, name="beside", op=hvd.MajorityVote, ties="zero")
        total = hvd.allreduce_async(torch.ones(4), op=hvd.Sum)
        backward(params, given)
        if world.rank % 2 == 0:
            handle = hvd.allreduce_async(tensor, name="beside", op=hvd.MajorityVote, ties="zero")
        optimizer.step()
        for p, want in zip(params, wanted, strict=True):
            want.check(plain(p.grad))
        single.check(plain(hvd.synchronize(handle)))
        np.testing.assert_array_equal(plain(hvd.synchronize(total)), world.size)
        optimizer.zero_grad()


def test_optimizers_come_and_go(hvd, world):
    for turn in range(15):
        params = parameters((30 + turn,), (64,))
        step(world, params, wrap(hvd, params), gradients(world.rank, params, turn))


@pytest.mark.parametrize("forgotten", [False, True])
def test_parameters_wrapped_anew_are_right_or_refused_alike(hvd, world, forgotten):
    """A second phase of training: never two votes on one gradient behind the user's back."""
    params = parameters(*SHAPES)
    old = wrap(hvd, params)
    step(world, params, old, gradients(world.rank, params))
    if forgotten:
        del old
    try:
        new = wrap(hvd, params, lr=0.1)
        message = None
    except ValueError as error:
        message = str(error)
    assert len(set(world.allgather(message))) == 1
    if message is None:
        for turn in range(1, 3):
            step(world, params, new, gradients(world.rank, params, turn))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("difference", ["shape", "same size", "dtype", "name", "more", "options"])
def test_ranks_that_disagree_are_told_alike(hvd, world, difference):
    """Whether at construction or in the first step: one sentence, the same on every rank."""
    odd = world.rank == world.size - 1
    params = parameters((12,), (4, 6))
    names = ["first", "second"]
    options = {}
    if odd:
        if difference == "shape":
            params = parameters((12,), (4, 7))
        elif difference == "same size":
            params = parameters((12,), (6, 4))
        elif difference == "dtype":
            params[1] = torch.nn.Parameter(params[1].detach().double())
        elif difference == "name":
            names = ["first", "second_"]
        elif difference == "more":
            params, names = [*params, *parameters((3,))], [*names, "third"]
        else:
            options = {"ties": "zero"}

    def run() -> None:
        optimizer = wrap(
            hvd, params, named_parameters=list(zip(names, params, strict=True)), **options
        )
        backward(params, gradients(world.rank, params))
        optimizer.step()

    message = refused_alike(world, run)
    word = {"more": "third", "options": "ties"}.get(difference, "second")
    assert word in message
    params = parameters(*SHAPES)
    step(world, params, wrap(hvd, params), gradients(world.rank, params))


@pytest.mark.ranks(2)
def test_parameters_registered_in_another_order_are_right_or_refused_alike(hvd, world):
    params = parameters((12,), (4, 6), (70,))
    pairs = named(params)
    if world.rank == 0:
        pairs.reverse()
    given = gradients(world.rank, params)
    wanted = [expected(world, g) for g in given]
    try:
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD([p for _, p in pairs], lr=0.5), pairs, op=hvd.MajorityVote
        )
        backward(params, given)
        optimizer.step()
        message = None
    except ValueError as error:
        message = str(error)
    assert len(set(world.allgather(message))) == 1
    if message is None:
        for p, want in zip(params, wanted, strict=True):
            want.check(plain(p.grad))
        assert same_everywhere(world, *params)
