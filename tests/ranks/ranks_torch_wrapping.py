"""What stays the user's after wrapping: models, copies, checkpoints, schedulers, hooks."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import time
import warnings
import weakref

import numpy as np
import pytest
import torch
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
from torch import nn

KINDS = ("vote", pytest.param("mean", marks=pytest.mark.runtime("mpi")))


def wrap(hvd, params: list, kind: str = "vote", optimizer=None):
    op = {"vote": hvd.MajorityVote, "mean": hvd.Average}[kind]
    optimizer = optimizer or torch.optim.SGD(params, lr=0.5, momentum=0.9)
    return hvd.DistributedOptimizer(optimizer, named(params), op=op)


def step(world, params: list, optimizer, turn: int = 0) -> None:
    backward(params, gradients(world.rank, params, turn))
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_saved_copied_and_broadcast(hvd, world, kind):
    torch.manual_seed(world.rank)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = wrap(hvd, list(model.parameters()), kind)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [
        torch.load(file, weights_only=False),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ]
    for other in copies:
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            np.testing.assert_array_equal(plain(p), plain(q))
            assert vars(p) == vars(q) == {}
    sent = hvd.broadcast_object(model, root_rank=0)
    assert same_everywhere(world, *sent.parameters())
    # A copy's gradients are nobody's business.
    copies[2](torch.ones(4)).sum().backward()
    step(world, list(model.parameters()), optimizer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicate", ["copy", "deepcopy", "pickle", "torch.save"])
def test_a_copy_of_an_optimizer_is_its_plain_one(hvd, world, duplicate, kind):
    params = parameters((30,), (4, 2))
    optimizer = wrap(hvd, params, kind)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step(world, params, optimizer)
    if duplicate == "pickle":
        other = pickle.loads(pickle.dumps(optimizer))
    elif duplicate == "torch.save":
        file = io.BytesIO()
        torch.save(optimizer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = getattr(copy, duplicate)(optimizer)
    assert type(other) is torch.optim.SGD
    own = other.param_groups[0]["params"]
    for p, q in zip(params, own, strict=True):
        np.testing.assert_array_equal(plain(p), plain(q))
        moments = (o.state[x]["momentum_buffer"] for o, x in ((optimizer, p), (other, q)))
        np.testing.assert_array_equal(*map(plain, moments))
    before, votes = [plain(q) for q in own], hvd.vote_stats().votes
    for q in own:
        q.grad = torch.ones_like(q)
        other.state[q]["momentum_buffer"].zero_()
    other.step()
    for q, old in zip(own, before, strict=True):
        np.testing.assert_allclose(plain(q), old - 0.5, atol=1e-6)
    assert hvd.vote_stats().votes == votes


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_wrapped_before_is_retired(hvd, world, kind):
    params = parameters((30,), (4, 2))
    inner = torch.optim.SGD(params, lr=0.5)
    first = wrap(hvd, params, kind, inner)
    second = wrap(hvd, params, kind, inner)
    step(world, params, second)
    backward(params, gradients(world.rank, params, 1))
    with pytest.raises(RuntimeError, match="wrapped its parameters anew"):
        first.step()
    second.step()
    assert same_everywhere(world, *params)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_keeps_a_wrapper(hvd, kind):
    params = parameters((30,))
    inner = torch.optim.SGD(params, lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(inner, 1)
    optimizer = wrap(hvd, params, kind, inner)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    scheduler.optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("made", ["before", "after", "twice"])
def test_a_scheduler_lasts(hvd, world, made, kind):
    """Whichever optimizer it was given, and whichever of them loads a checkpoint."""
    params = parameters((100,))
    inner = torch.optim.SGD(params, lr=1.0)
    schedulers = []
    if made != "after":
        schedulers.append(torch.optim.lr_scheduler.StepLR(inner, step_size=1, gamma=0.5))
    optimizer = wrap(hvd, params, kind, inner)
    if made != "before":
        schedulers.append(torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5))
    rate = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turn in range(4):
            before = plain(params[0])
            backward(params, gradients(world.rank, params, turn))
            optimizer.step()
            moved = plain(params[0]) - before
            np.testing.assert_allclose(moved, -rate * plain(params[0].grad), atol=1e-6)
            optimizer.zero_grad()
            for scheduler in schedulers:
                scheduler.step()
                rate /= 2
            if turn < 2:
                loader = (optimizer, inner)[turn]
                loader.load_state_dict(copy.deepcopy(loader.state_dict()))
            assert optimizer.param_groups[0]["lr"] == inner.param_groups[0]["lr"] == rate
            assert schedulers[0].get_last_lr() == [rate] or made == "twice"


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_run_once_a_step(hvd, world, kind):
    params = parameters((100,))
    inner = torch.optim.SGD(params, lr=1.0)
    calls = []
    inner.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer = wrap(hvd, params, kind, inner)
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    step(world, params, optimizer)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(world, params, optimizer, 1)
    optimizer.__setstate__(optimizer.__getstate__())
    step(world, params, optimizer, 2)
    assert calls == ["before", "after", "loaded", *["before", "after"] * 2]


class Counting(torch.optim.SGD):
    """An optimizer with attributes of its own, one of which its steps change."""

    def __init__(self, params: list, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.steps = 0

    def step(self, closure=None):
        """Counts."""
        self.steps += 1
        return super().step(closure)


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_are_the_wrapped_optimizers(hvd, world, kind):
    params = parameters((100,))
    inner = Counting(params, lr=0.5)
    optimizer = wrap(hvd, params, kind, inner)
    assert isinstance(optimizer, Counting)
    step(world, params, optimizer)
    assert optimizer.steps == inner.steps == 1
    optimizer.steps = 5
    assert inner.steps == 5
    optimizer.param_groups[0]["lr"] = 0.25
    assert inner.param_groups[0]["lr"] == 0.25
    optimizer.note = "mine"
    assert inner.note == "mine"
    del optimizer.note
    assert not hasattr(inner, "note")
    with pytest.raises(AttributeError, match="nonsense"):
        optimizer.nonsense  # noqa: B018
    assert "lr: 0.25" in repr(optimizer)


@pytest.mark.ranks(2)
def test_a_fused_optimizer_unscales_by_itself(hvd, world):
    params = [nn.Parameter(values(1, 50))]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(params, lr=0.5, fused=True),
        named(params),
        op=hvd.MajorityVote,
        grad_scaler=scaler,
    )
    (given,) = gradients(world.rank, params)
    want, before = expected(world, given), plain(params[0])
    scaler.scale((params[0] * given).sum()).backward()
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        scaler.step(optimizer)
    scaler.update()
    want.check((before - plain(params[0])) / 0.5, rtol=1e-4)


@pytest.mark.ranks(1, 1)
def test_names_of_many_parameters_take_no_time(hvd):
    from hvd_sign_torch.parameters import parameter_names

    params = [nn.Parameter(torch.zeros(1)) for _ in range(40_000)]
    optimizer = torch.optim.SGD(params, lr=0.5)
    begin = time.process_time()
    assert len(parameter_names(optimizer, named(params))) == 40_000
    assert time.process_time() - begin < 3  # quadratic: 15 s and more
