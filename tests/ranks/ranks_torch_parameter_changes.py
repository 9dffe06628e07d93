"""Parameters that are added, frozen and unfrozen while an optimizer votes.

What momentum has to be is told by numpy: kept by parameter, whatever the list.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from additions.momentum import FusedMomentum, Momentum
from helpers import backward, expected, gradients, named, parameters, plain, same_everywhere
from reference import verdict

SHAPES = ((64, 10), (10,), (5000,), ())
KEY = "hvd_sign"
BETA = 0.75


def wrap(hvd, params: list, **options):
    optimizer = torch.optim.SGD(params, lr=0.5)
    options = {"op": hvd.MajorityVote, "ties": "zero", **options}
    return hvd.DistributedOptimizer(optimizer, named_parameters=named(params), **options)


class Kept:
    """Every rank's momentum of each parameter, by the parameter's number."""

    def __init__(self, world, params: list) -> None:
        self.world = world
        self.params = params
        self.arrays = [[np.zeros(p.shape, np.float32) for p in params] for _ in range(world.size)]

    def step(self, optimizer, turn: int, live: list[int]) -> None:
        """A step in which the parameters of those numbers have gradients, and what it must do."""
        params = self.params
        before = [plain(p) for p in params]
        given = [gradients(rank, params, turn) for rank in range(self.world.size)]
        mine = [g if i in live else None for i, g in enumerate(given[self.world.rank])]
        optimizer.zero_grad()
        backward(params, mine)
        optimizer.step()
        for i, p in enumerate(params):
            if i not in live:
                np.testing.assert_array_equal(plain(p), before[i])
                continue
            for rank in range(self.world.size):
                kept = self.arrays[rank][i]
                kept *= np.float32(BETA)
                kept += np.float32(1 - BETA) * given[rank][i].numpy()
            verdict([arrays[i] for arrays in self.arrays], "zero").check(plain(p.grad))
        assert same_everywhere(self.world, *params)

    def check(self, optimizer, listed: list[int]) -> None:
        """What a checkpoint has of those parameters, in the order of the list."""
        saved = optimizer.state_dict()[KEY]
        assert {name for name in saved if "/" in name} == {f"v/{i}" for i in range(len(listed))}
        for ordinal, i in enumerate(listed):
            mine = self.arrays[self.world.rank][i].reshape(-1)
            np.testing.assert_array_equal(saved[f"v/{ordinal}"].numpy(), mine)


@pytest.mark.parametrize("bucket_bytes", [100, 25 << 20])
@pytest.mark.parametrize("kind", [Momentum, FusedMomentum])
def test_frozen_and_unfrozen(hvd, world, kind, bucket_bytes):
    """Bottom up, as in fine-tuning, and back: momentum waits for a parameter that is frozen."""
    params = parameters(*SHAPES)
    params[0].requires_grad_(False)
    params[1].requires_grad_(False)
    optimizer = wrap(hvd, params, algorithm=kind(BETA), bucket_bytes=bucket_bytes)
    kept = Kept(world, params)
    turn = 0
    for live in ([2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 3], [0, 1, 2, 3]):
        for i, p in enumerate(params):
            p.requires_grad_(i in live)
        for _ in range(2):
            kept.step(optimizer, turn, live)
            turn += 1
        kept.check(optimizer, live)
        assert optimizer.state_dict()[KEY]["step"] == turn


def test_groups_that_are_added(hvd, world):
    params = parameters(*SHAPES)
    optimizer = torch.optim.SGD(params[:2], lr=0.5)
    optimizer = hvd.DistributedOptimizer(
        optimizer, named(params[:2]), op=hvd.MajorityVote, algorithm=Momentum(BETA), ties="zero"
    )
    kept = Kept(world, params)
    kept.step(optimizer, 0, [0, 1])
    optimizer.add_param_group({"params": params[2:3], "lr": 0.125})
    kept.step(optimizer, 1, [0, 1, 2])
    optimizer.add_param_group({"params": params[3:], "lr": 0.125, "vote": False})
    before = plain(params[3])
    optimizer.zero_grad()
    given = [gradients(rank, params, 2) for rank in range(world.size)]
    backward(params, given[world.rank])
    optimizer.step()
    mean = np.mean([plain(theirs[3]) for theirs in given])
    np.testing.assert_allclose(plain(params[3]), before - 0.125 * mean, rtol=1e-5)
    assert optimizer.state_dict()[KEY]["step"] == 3


@pytest.mark.parametrize("clip", [{}, {"clip_norm": 1e6}], ids=str)
def test_in_the_middle_of_passes(hvd, world, clip):
    """What changes after a step has begun counts from the next one on."""
    params = parameters(*SHAPES)
    params[0].requires_grad_(False)
    optimizer = wrap(hvd, params, backward_passes_per_step=2, **clip)
    for turn, live in ((0, [1, 2, 3]), (1, [1, 2, 3]), (2, [0, 1, 2, 3])):
        sums = [0] * 4
        optimizer.zero_grad()
        for half in range(2):
            given = gradients(world.rank, params, 2 * turn + half)
            sums = [a + b for a, b in zip(sums, given, strict=True)]
            given = [g if i in live else None for i, g in enumerate(given)]
            backward(params, given)
            if turn == 1 and half == 0:
                params[0].requires_grad_(True)
        optimizer.step()
        for i in live:
            expected(world, sums[i], "zero").check(plain(params[i].grad))
    assert same_everywhere(world, *params)


def test_with_a_scaler_a_warm_up_and_checks(hvd, world):
    params = parameters(*SHAPES)
    params[1].requires_grad_(False)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = wrap(hvd, params, grad_scaler=scaler, warmup_steps=3, check_every=1)
    for turn in range(5):
        if turn == 1:
            params[1].requires_grad_(True)
        optimizer.zero_grad()
        given = [gradients(rank, params, turn) for rank in range(world.size)]
        mine = given[world.rank]
        scaler.scale(
            torch.stack([(p * g).sum() for p, g in zip(params, mine, strict=True)]).sum()
        ).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        if turn:
            got = plain(params[1].grad)
            if turn < 3:
                wanted = np.mean([plain(theirs[1]) for theirs in given], axis=0)
                np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
            else:
                expected(world, mine[1], "zero").check(got)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
    assert same_everywhere(world, *params)


def test_all_are_frozen_and_some_come_back(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, algorithm=Momentum(BETA))
    kept = Kept(world, params)
    kept.step(optimizer, 0, [0, 1, 2, 3])
    for p in params:
        p.requires_grad_(False)
    optimizer.zero_grad()
    optimizer.step()
    for p in params[:2]:
        p.requires_grad_(True)
    kept.step(optimizer, 1, [0, 1])


@pytest.mark.parametrize("kind", ["Signum", "Lion"])
def test_optimizers_of_signs(hvd, world, kind):
    params = parameters(*SHAPES)
    optimizer = getattr(hvd, kind)(params[:2], lr=0.5, ties="zero")
    optimizer = hvd.DistributedOptimizer(optimizer, named(params[:2]))
    with pytest.raises(ValueError, match="differ in 'lr' and 'weight_decay' alone"):
        optimizer.add_param_group({"params": params[2:], "ties": "coin"})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": params[2:], "lr": 0.25})
    before = [plain(p) for p in params]
    backward(params, gradients(world.rank, params))
    optimizer.step()
    for p, old, lr in zip(params, before, (0.5, 0.5, 0.25, 0.25), strict=True):
        moved = np.abs(plain(p) - old)
        assert np.isclose(moved, lr, rtol=1e-5).mean() > 0.3
        assert (np.isclose(moved, lr, rtol=1e-5) | (moved == 0)).all()
    assert same_everywhere(world, *params)


def test_joins_serve_the_new_list_alone(hvd, world):
    params = parameters(*SHAPES)
    params[1].requires_grad_(False)
    optimizer = wrap(hvd, params)
    for turn in range(world.rank + 2):
        params[1].requires_grad_(turn > 0)
        optimizer.zero_grad()
        given = gradients(world.rank, params, turn)
        given[1] = given[1] if turn > 0 else None
        backward(params, given)
        optimizer.step()
    hvd.broadcast_parameters(dict(named(params)), root_rank=hvd.join())
    optimizer.zero_grad()
    given = gradients(world.rank, params, 9)
    backward(params, given)
    optimizer.step()
    for p, g in zip(params, given, strict=True):
        expected(world, g, "zero").check(plain(p.grad))


def test_a_checkpoint_between_a_change_and_its_first_step(hvd, world):
    """It has what belongs to the list as it is then; loading waits until votes have begun anew."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, algorithm=Momentum(BETA))
    kept = Kept(world, params)
    kept.step(optimizer, 0, [0, 1, 2, 3])
    params[0].requires_grad_(False)
    kept.check(optimizer, [1, 2, 3])
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="load_state_dict: parameters were added, frozen or"):
        optimizer.load_state_dict(state)
    others = [torch.nn.Parameter(p.detach().clone(), p.requires_grad) for p in params]
    resumed = wrap(hvd, others, algorithm=Momentum(BETA))
    resumed.load_state_dict(state)
    for ps, opt in ((params, optimizer), (others, resumed)):
        opt.zero_grad()
        given = gradients(world.rank, ps, 1)
        backward(ps, [None, *given[1:]])
        opt.step()
    for p, q in zip(params, others, strict=True):
        np.testing.assert_array_equal(plain(p), plain(q))


@pytest.mark.ranks(2)
def test_a_change_on_one_rank(hvd, world):
    """It is refused there at once; the others, which do not wait for it, hear a step later."""
    params = parameters(*SHAPES)
    params[0].requires_grad_(False)
    optimizer = wrap(hvd, params)
    if world.rank == 0:
        params[0].requires_grad_(True)

    def step() -> None:
        optimizer.zero_grad()
        given = gradients(world.rank, params)
        backward(params, given if world.rank == 0 else [None, *given[1:]])
        optimizer.step()

    if world.rank == 0:
        with pytest.raises(ValueError, match="rank 0 has other parameters to exchange than before"):
            step()
    else:
        step()
        with pytest.raises(RuntimeError, match="rank 0 has other parameters to exchange"):
            step()
    world.Barrier()


@pytest.mark.ranks(2)
def test_other_changes_on_each_rank(hvd, world):
    params = parameters(*SHAPES)
    for p in params[:2]:
        p.requires_grad_(False)
    optimizer = wrap(hvd, params)
    params[min(world.rank, 1)].requires_grad_(True)
    backward(params[2:], gradients(world.rank, params)[2:])
    with pytest.raises(ValueError, match=r"parameter 'layer.[01]': name differs between ranks"):
        optimizer.step()
