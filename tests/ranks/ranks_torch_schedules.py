"""What schedulers, copies and closures do with optimizers that vote."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import backward, gradients, named, parameters, plain, same_everywhere
from training import COEFFICIENTS, LR, Momenta, batch, check, loss_of, make_model, wrap


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_one_cycle(hvd, world, kind):
    """Steps are as large as the schedule says."""
    params = parameters((300,))
    optimizer = getattr(hvd, kind)(params, lr=LR, ties="positive")
    optimizer = hvd.DistributedOptimizer(optimizer, named(params))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=6, cycle_momentum=False
    )
    other = torch.optim.SGD(parameters((3,)), lr=LR)
    wanted = torch.optim.lr_scheduler.OneCycleLR(
        other, max_lr=0.5, total_steps=6, cycle_momentum=False
    )
    for turn in range(5):
        before = plain(params[0])
        optimizer.zero_grad()
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        moved = np.abs(plain(params[0]) - before)
        np.testing.assert_allclose(moved, other.param_groups[0]["lr"], rtol=1e-3)
        other.step()
        schedule.step()
        wanted.step()


def test_a_schedule_of_momentum(hvd, world):
    """Votes go by the betas that ranks have agreed on; alone, Lion goes by what they are."""
    params = parameters((300,))
    lion = hvd.Lion(params, lr=LR, ties="zero")
    schedule = torch.optim.lr_scheduler.OneCycleLR(lion, max_lr=0.5, total_steps=6)
    m = np.zeros(300, np.float32)
    for turn in range(3):
        b1, b2 = lion.param_groups[0]["betas"]
        lr = lion.param_groups[0]["lr"]
        given = gradients(0, params, turn)[0]
        before = plain(params[0])
        params[0].grad = given.clone()
        signal = np.float32(b1) * m + np.float32(1 - b1) * given.numpy()
        lion.step()
        m = np.float32(b2) * m + np.float32(1 - b2) * given.numpy()
        np.testing.assert_allclose((before - plain(params[0])) / lr, np.sign(signal), rtol=1e-3)
        schedule.step()
    assert lion.param_groups[0]["betas"][0] != 0.9
    optimizer = hvd.DistributedOptimizer(lion, named(params))
    optimizer.zero_grad()
    backward(params, gradients(world.rank, params))
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    backward(params, gradients(world.rank, params))
    with pytest.raises(ValueError, match="cycle_momentum=False"):
        optimizer.step()


@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "Lion"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_the_plain_optimizer(hvd, world, how, kind):
    """Which votes with nobody, and can be wrapped."""
    model = make_model()
    optimizer = getattr(hvd, kind)(model.parameters(), lr=LR, ties="zero")
    optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters())
    loss_of(model, batch(world.rank, 0)).backward()
    optimizer.step()
    pair = (model, optimizer)
    other, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(copied) is getattr(hvd, kind)
    copied.zero_grad()
    if world.rank == 0:  # nobody is asked
        loss_of(other, batch(0, 1)).backward()
        copied.step()
    hvd.broadcast_parameters(other.state_dict(), root_rank=0)
    again = hvd.DistributedOptimizer(copied, other.named_parameters())
    again.zero_grad()
    loss_of(other, batch(world.rank, 2)).backward()
    again.step()
    assert same_everywhere(world, *other.parameters())
    optimizer.zero_grad()
    loss_of(model, batch(world.rank, 2)).backward()
    optimizer.step()
    assert same_everywhere(world, *model.parameters())


def test_closures(hvd, world):
    """Evaluated once, before the vote; what evaluates several gradients a step is refused."""
    model = make_model()
    params = list(model.parameters())
    optimizer = wrap(hvd, "Signum", model)
    calls = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch(world.rank, 0))
        loss.backward()
        calls.append(loss.detach())
        return loss

    given = torch.autograd.grad(loss_of(model, batch(world.rank, 0)), params)
    assert optimizer.step(closure) == calls[0]
    check(params, Momenta(world, "Signum", params).verdicts(list(given)))
    assert len(calls) == 1
    with pytest.raises(ValueError, match="LBFGS evaluates several gradients a step"):
        hvd.DistributedOptimizer(torch.optim.LBFGS(params), op=hvd.MajorityVote)


@pytest.mark.parametrize("kind", ["Signum", "Lion"])
def test_a_state_that_was_broadcast_is_gone_on_from(hvd, world, kind):
    """Each rank has stepped alone, with gradients of its own; then all are as rank 0."""
    params = parameters((300,))
    optimizer = getattr(hvd, kind)(params, lr=LR, ties="zero")
    for turn in range(2):
        params[0].grad = gradients(world.rank, params, turn)[0]
        optimizer.step()
    hvd.broadcast_parameters(dict(named(params)), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    for turn in range(2, 4):
        params[0].grad = gradients(7, params, turn)[0] * 0.01  # for momentum to decide
        optimizer.step()
    assert same_everywhere(world, *params)
    assert same_everywhere(world, optimizer.state[params[0]]["momentum"])
