"""Algorithms that keep something, through PyTorch's optimizer: scalers, passes, absent gradients.

What momentum has to be is told by numpy, in fp32; scales are powers of two, so that it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from additions.momentum import FusedMomentum, Momentum
from helpers import backward, gradients, named, parameters, plain, same_everywhere
from reference import verdict

SHAPES = ((64, 10), (10,), (5000,))
KEY = "hvd_sign"
BETA = 0.75
KINDS = [Momentum, FusedMomentum]


@dataclass(frozen=True)
class Patient(Momentum):
    """Leaves its arrays alone where there is no gradient."""

    absent = "abstain"


def wrap(hvd, params: list, kind=Momentum, **options):
    optimizer = torch.optim.SGD(params, lr=0.5)
    options.setdefault("algorithm", kind(BETA))
    return hvd.DistributedOptimizer(
        optimizer, named_parameters=named(params), op=hvd.MajorityVote, **options
    )


class Kept:
    """What every rank's momentum has to be."""

    def __init__(self, size: int, params: list) -> None:
        self.arrays = [[np.zeros(tuple(p.shape), np.float32) for p in params] for _ in range(size)]

    def add(self, rank: int, ordinal: int, given: np.ndarray) -> None:
        v = self.arrays[rank][ordinal]
        v[...] = np.float32(BETA) * v + np.float32(1 - BETA) * given.astype(np.float32)

    def check(self, optimizer, rank: int) -> None:
        kept = optimizer.state_dict()[KEY]
        for ordinal, wanted in enumerate(self.arrays[rank]):
            found = kept[f"v/{ordinal}"].numpy()
            np.testing.assert_array_equal(found, wanted.reshape(-1), strict=True)

    def verdicts(self, params: list):
        for ordinal in range(len(params)):
            yield verdict([arrays[ordinal] for arrays in self.arrays], "coin")


def scaled_backward(params: list, given: list, scaler) -> None:
    pairs = zip(params, given, strict=True)
    scaler.scale(torch.stack([(p * g.to(p.dtype)).sum() for p, g in pairs]).sum()).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_momentum_is_kept_unscaled(hvd, world, kind, dtype):
    """While the loss's scale doubles every second step, and a skipped one halves it."""
    params = parameters((64, 10), (10,), (500,), dtype=dtype)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    optimizer = wrap(hvd, params, kind, grad_scaler=scaler)
    kept = Kept(world.size, params)
    scales, skipped = [], 3
    for turn in range(7):
        scales.append(scaler.get_scale())
        everyones = [gradients(rank, params, turn) for rank in range(world.size)]
        given = everyones[world.rank]
        if turn == skipped and world.rank == world.size - 1:
            given[1][2] = float("inf")
        before = [plain(p) for p in params]
        scaled_backward(params, given, scaler)
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        if turn != skipped:
            for rank, theirs in enumerate(everyones):
                for ordinal, gradient in enumerate(theirs):
                    kept.add(rank, ordinal, gradient.float().numpy())
            for p, want in zip(params, kept.verdicts(params), strict=True):
                want.check(plain(p.grad))
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        moved = [(plain(p) != old).any() for p, old in zip(params, before, strict=True)]
        assert moved == [turn != skipped] * len(params)
        kept.check(optimizer, world.rank)
        assert optimizer.state_dict()[KEY]["step"] == turn + 1
        assert same_everywhere(world, *params)
        optimizer.zero_grad()
    assert scales == [64, 64, 128, 128, 64, 64, 128]


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_verdict_is_as_large_as_the_unscaled_signal(hvd, world, kind):
    params = parameters((500,))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = wrap(hvd, params, kind, grad_scaler=scaler, scale="mean_abs")
    scaled_backward(params, [torch.full((500,), 3.0)], scaler)
    optimizer.synchronize()
    scaler.unscale_(optimizer)
    np.testing.assert_array_equal(plain(params[0].grad), (1 - BETA) * 3)


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_it_sees_the_sum_of_a_steps_passes(hvd, world, kind, passes):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, kind, backward_passes_per_step=passes)
    kept = Kept(world.size, params)
    for step in range(3):
        turns = range(step * passes, (step + 1) * passes)
        for rank in range(world.size):
            sums = [np.zeros(tuple(p.shape), np.float32) for p in params]
            for turn in turns:
                for total, gradient in zip(sums, gradients(rank, params, turn), strict=True):
                    total += gradient.numpy()
            for ordinal, total in enumerate(sums):
                kept.add(rank, ordinal, total)
        for turn in turns:
            backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        for p, want in zip(params, kept.verdicts(params), strict=True):
            want.check(plain(p.grad))
        kept.check(optimizer, world.rank)
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [*KINDS, Patient])
def test_absent_gradients(hvd, world, kind):
    """One on a rank at first, then one everywhere: ``p.grad`` is None there, whatever is kept."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, kind)
    kept = Kept(world.size, params)
    missing = {1: (0, [world.size - 1]), 2: (1, range(world.size))}
    for turn in range(4):
        place, without = missing.get(turn, (None, []))
        for rank in range(world.size):
            for ordinal, gradient in enumerate(gradients(rank, params, turn)):
                if ordinal != place or rank not in without:
                    kept.add(rank, ordinal, gradient.numpy())
                elif kind is not Patient:
                    kept.add(rank, ordinal, np.zeros(tuple(gradient.shape)))
        given = gradients(world.rank, params, turn)
        if world.rank in without:
            given[place] = None
        backward(params, given)
        optimizer.step()
        kept.check(optimizer, world.rank)
        nobody = len(without) == world.size
        for ordinal, (p, want) in enumerate(zip(params, kept.verdicts(params), strict=True)):
            if ordinal == place and nobody:
                assert p.grad is None
                continue
            if ordinal == place and kind is Patient:  # whoever has none abstains
                signals = [arrays[ordinal] for arrays in kept.arrays[: world.size - 1]]
                want = verdict([*signals, np.zeros(tuple(p.shape))], "coin")
            want.check(plain(p.grad))
        assert same_everywhere(world, *params)
        optimizer.zero_grad()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("kind", KINDS)
def test_process_sets_keep_states_apart(hvd, world, kind):
    """One optimizer among the even ranks or the odd ones, another among all, in turn."""
    halves = [ranks for ranks in (range(0, world.size, 2), range(1, world.size, 2)) if ranks]
    sets = [hvd.add_process_set(list(ranks)) for ranks in halves]
    try:
        mine = world.rank % 2
        members = list(halves[mine])
        ours, all_ours = parameters(*SHAPES), parameters(*SHAPES[:2])
        among = wrap(hvd, ours, kind, process_set=sets[mine])
        between = wrap(hvd, all_ours, kind)
        kept, all_kept = Kept(len(members), ours), Kept(world.size, all_ours)
        for turn in range(2 + mine):  # the odd ranks take a step more among themselves
            for place, rank in enumerate(members):
                for ordinal, gradient in enumerate(gradients(rank, ours, turn)):
                    kept.add(place, ordinal, gradient.numpy())
            backward(ours, gradients(world.rank, ours, turn))
            if turn < 2:
                for rank in range(world.size):
                    for ordinal, gradient in enumerate(gradients(rank, all_ours, 50 + turn)):
                        all_kept.add(rank, ordinal, gradient.numpy())
                backward(all_ours, gradients(world.rank, all_ours, 50 + turn))
                between.step()
            among.step()
            for p, want in zip(ours, kept.verdicts(ours), strict=True):
                want.check(plain(p.grad))
            among.zero_grad()
            between.zero_grad()
        kept.check(among, members.index(world.rank))
        all_kept.check(between, world.rank)
        assert among.state_dict()[KEY]["step"] == 2 + mine
        assert between.state_dict()[KEY]["step"] == 2
    finally:
        for each in sets:
            hvd.remove_process_set(each)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_joined_rank_keeps_what_it_has(hvd, world, kind):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, kind)
    kept = Kept(world.size, params)
    last = world.size - 1
    for turn in range(4 if world.rank != last else 2):
        for rank in range(world.size):
            if rank != last or turn < 2:
                for ordinal, gradient in enumerate(gradients(rank, params, turn)):
                    kept.add(rank, ordinal, gradient.numpy())
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        for ordinal, p in enumerate(params):
            voting = kept.arrays if turn < 2 else kept.arrays[:last]
            silent = [] if turn < 2 else [np.zeros(tuple(p.shape))]
            signals = [arrays[ordinal] for arrays in voting] + silent
            verdict(signals, "coin").check(plain(p.grad))
        optimizer.zero_grad()
    hvd.join()
    kept.check(optimizer, world.rank)
