"""Checkpoints, schedules, broadcasts, values that are no numbers, and training that learns."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from helpers import backward, expected, gradients, named, parameters, plain, same_everywhere, values
from torch import nn

SHAPES = ((64, 10), (10,), (5000,))


def wrap(hvd, params: list, optimizer=None, **options):
    optimizer = optimizer or torch.optim.SGD(params, lr=0.5, momentum=0.9)
    options.setdefault("op", hvd.MajorityVote)
    return hvd.DistributedOptimizer(optimizer, named_parameters=named(params), **options)


def steps(world, params: list, optimizer, turns) -> None:
    for turn in turns:
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        optimizer.zero_grad()


def everything(optimizer) -> list[torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return [
        value
        for key in sorted(state)
        for _, value in sorted(state[key].items())
        if torch.is_tensor(value)
    ]


def test_checkpoint_restores_the_same_course(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, ties="zero")
    steps(world, params, optimizer, range(2))
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), [p.detach().clone() for p in params]], file)
    steps(world, params, optimizer, range(2, 4))
    continued = [plain(p) for p in params]

    file.seek(0)
    state, saved = torch.load(file)
    restored = [nn.Parameter(p.clone()) for p in saved]
    other = wrap(hvd, restored, ties="zero")
    other.load_state_dict(copy.deepcopy(state))
    steps(world, restored, other, range(2, 4))
    for p, q in zip(continued, restored, strict=True):
        np.testing.assert_array_equal(p, plain(q))

    optimizer.load_state_dict(state)  # and into the running one
    with torch.no_grad():
        for p, q in zip(params, saved, strict=True):
            p.copy_(q)
    steps(world, params, optimizer, range(2, 4))
    for p, q in zip(continued, params, strict=True):
        np.testing.assert_array_equal(p, plain(q))


def test_state_dict_is_the_wrapped_optimizers(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    steps(world, params, optimizer, range(1))
    bare = torch.optim.SGD(parameters(*SHAPES), lr=0.1, momentum=0.9)
    bare.load_state_dict(optimizer.state_dict())
    assert bare.param_groups[0]["lr"] == 0.5
    for mine, theirs in zip(everything(bare), everything(optimizer), strict=True):
        np.testing.assert_array_equal(plain(mine), plain(theirs))


@pytest.mark.ranks(2)
def test_load_state_dict_between_backward_and_step(hvd, world):
    """Horovod forgets the gradients in flight; the next step must be in order on every rank."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    steps(world, params, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    backward(params, gradients(world.rank, params, 1))
    optimizer.synchronize()
    optimizer.load_state_dict(state)
    optimizer.zero_grad()
    steps(world, params, optimizer, range(2, 4))
    assert same_everywhere(world, *params)


def test_schedulers(hvd, world):
    params = parameters((100,))
    optimizer = wrap(hvd, params, torch.optim.SGD(params, lr=1.0), ties="positive")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for turn in range(3):
        before = plain(params[0])
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        moved = np.abs(plain(params[0]) - before)
        np.testing.assert_allclose(moved, 0.5**turn, rtol=1e-4)
        optimizer.zero_grad()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_parameters_that_are_added_are_voted_on_too(hvd, world):
    """Horovod would leave them out of the reduction without a word."""
    params = parameters((100,), (5,))
    optimizer = wrap(hvd, params[:1])
    optimizer.add_param_group({"params": params[1:]})
    steps(world, params, optimizer, range(2))
    assert same_everywhere(world, *params)


@pytest.mark.parametrize("kind", ["momentum", "adam", "plain"])
def test_broadcast_optimizer_state(hvd, world, kind):
    """Rank 0's state everywhere, no vote, no parameter moved: also where a state is still empty."""
    params = parameters(*SHAPES)
    rate = 0.5 if world.rank == 0 else 0.125
    inner = {
        "momentum": lambda: torch.optim.SGD(params, lr=rate, momentum=0.9),
        "adam": lambda: torch.optim.Adam(params, lr=rate),
        "plain": lambda: torch.optim.SGD(params, lr=rate),
    }[kind]()
    if world.rank == 0:  # as if loaded from a checkpoint
        backward(params, gradients(0, params))
        inner.step()
        inner.zero_grad()
    optimizer = wrap(hvd, params, inner)
    before, votes = [plain(p) for p in params], hvd.vote_stats().votes
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert hvd.vote_stats().votes == votes
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)
    assert same_everywhere(world, *everything(optimizer))
    if kind != "plain":
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert len(everything(optimizer)) >= 3
    hvd.broadcast_parameters(dict(named(params)), root_rank=0)
    assert same_everywhere(world, *params)
    optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = 0.1
    steps(world, params, optimizer, range(2))
    assert same_everywhere(world, *params, *everything(optimizer))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_nonfinite_abstain(hvd, world, bad):
    params = parameters((9000,), (100,))
    optimizer = wrap(hvd, params, nonfinite="abstain")
    given = gradients(world.rank, params)
    if world.rank == 0:
        given[0][5000] = bad
        given[1][3] = bad
    wanted = [expected(world, g) for g in given]
    before = hvd.vote_stats()
    for p, g in zip(params, given, strict=True):
        p.grad = None
        p.register_hook(lambda _, g=g: g)
    (params[0].sum() + params[1].sum()).backward()
    optimizer.step()
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))
        assert torch.isfinite(p).all()
    assert same_everywhere(world, *params)
    after = hvd.vote_stats()
    assert after.nonfinite_chunks - before.nonfinite_chunks == (2 if world.rank == 0 else 0)
    assert after.skipped_steps == before.skipped_steps


@pytest.mark.parametrize("where", [0, -1])
def test_nonfinite_skip(hvd, world, where):
    """Any rank's NaN: parameters and momentum stay as they were, on all ranks; then on it goes."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, nonfinite="skip", bucket_bytes=300)
    steps(world, params, optimizer, range(1))
    before, state = [plain(p) for p in params], [plain(v) for v in everything(optimizer)]
    skipped = hvd.vote_stats().skipped_steps
    given = gradients(world.rank, params, 1)
    if world.rank == where % world.size:
        given[0][0, 0] = float("nan")
    hooks = [p.register_hook(lambda _, g=g: g) for p, g in zip(params, given, strict=True)]
    sum(p.sum() for p in params).backward()
    optimizer.step()
    for hook in hooks:
        hook.remove()
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)
    for value, old in zip(everything(optimizer), state, strict=True):
        np.testing.assert_array_equal(plain(value), old)
    assert hvd.vote_stats().skipped_steps - skipped == 1
    optimizer.zero_grad()
    steps(world, params, optimizer, range(2, 4))
    assert same_everywhere(world, *params, *everything(optimizer))
    assert not np.array_equal(plain(params[0]), before[0])
    assert hvd.vote_stats().skipped_steps - skipped == 1


def accuracy(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    return float((model(inputs).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("scale", ["none", "mean_abs"])
def test_training_learns(hvd, world, scale):
    """Four clouds of points, each rank with other points of them."""
    centres = 2.5 * values(3, 4, 16)

    def cloud(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 4
        return centres[labels] + values(seed, count, 16), labels

    torch.manual_seed(world.rank)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    rate = 0.01 if scale == "none" else 0.5
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=rate),
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.sign,
        scale=scale,
    )
    test = cloud(10_000, 400)
    first = accuracy(model, *test)
    for turn in range(40):
        inputs, labels = cloud(100 * world.rank + turn, 32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert same_everywhere(world, *model.parameters())
    assert accuracy(model, *test) > max(0.9, first)
