"""Parameters of every kind: frozen, unused, shared, empty, sparse, of several types and layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alike import refused_alike
from helpers import (
    DTYPES,
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


def wrap(hvd, params: list, **options):
    options.setdefault("named_parameters", named(params))
    optimizer = torch.optim.SGD(params, lr=0.5)
    return hvd.DistributedOptimizer(optimizer, op=hvd.MajorityVote, **options)


def check(world, params: list, wanted: list, given: list | None = None) -> None:
    """Of `given` gradients some may be None: where every rank's is, so is what comes of it."""
    absent = [g is None for g in given or params]
    nobody = [all(ranks) for ranks in zip(*world.allgather(absent), strict=True)]
    for p, want, none in zip(params, wanted, nobody, strict=True):
        if none:
            assert p.grad is None
            continue
        want.check(plain(p.grad))
        assert p.grad.dtype == p.dtype
        assert p.grad.shape == p.shape
    assert same_everywhere(world, *params, *[p.grad for p in params if p.grad is not None])


def zeros_for_missing(params: list, grads: list) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types(hvd, world, dtype):
    params = parameters((70,), (8, 9), (), dtype=dtype)
    optimizer = wrap(hvd, params)
    given = gradients(world.rank, params)
    wanted = [expected(world, g) for g in given]
    backward(params, given)
    optimizer.step()
    check(world, params, wanted)


@pytest.mark.parametrize("bucket_bytes", [100, 25 << 20])
def test_mixed_types(hvd, world, bucket_bytes):
    params = [p for dtype in DTYPES for p in parameters((70,), (), (130,), dtype=dtype)]
    optimizer = wrap(hvd, params, bucket_bytes=bucket_bytes, ties="zero")
    for turn in range(2):
        given = gradients(world.rank, params, turn)
        wanted = [expected(world, g, "zero") for g in given]
        backward(params, given)
        optimizer.step()
        check(world, params, wanted)
        optimizer.zero_grad()


def test_zero_size_and_scalar_parameters(hvd, world):
    params = parameters((0,), (), (3, 0), (1,), (5,))
    optimizer = wrap(hvd, params)
    for turn in range(2):
        given = gradients(world.rank, params, turn)
        wanted = [expected(world, g) for g in given]
        backward(params, given)
        optimizer.step()
        check(world, params, wanted)
        optimizer.zero_grad()


def test_frozen_parameters(hvd, world):
    params = parameters((70,), (5,), (9,))
    params[1].requires_grad_(False)
    optimizer = wrap(hvd, params)
    frozen = plain(params[1])
    live = [params[0], params[2]]
    given = gradients(world.rank, live)
    wanted = [expected(world, g) for g in given]
    backward(live, given)
    optimizer.step()
    check(world, live, wanted)
    assert params[1].grad is None
    np.testing.assert_array_equal(plain(params[1]), frozen)


def test_unfrozen_after_wrapping(hvd, world):
    params = parameters((70,), (5,), (9,))
    params[1].requires_grad_(False)
    optimizer = wrap(hvd, params)
    params[1].requires_grad_(True)
    given = gradients(world.rank, params)
    wanted = [expected(world, g) for g in given]
    backward(params, given)
    optimizer.step()
    check(world, params, wanted)


def test_all_parameters_frozen(hvd, world):
    params = parameters((70,), (5,))
    for p in params:
        p.requires_grad_(False)
    optimizer = wrap(hvd, params)
    before = [plain(p) for p in params]
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)


def test_parameter_that_nobody_uses(hvd, world):
    params = parameters((70,), (200,), (9,))
    optimizer = wrap(hvd, params)
    for turn in range(2):
        given = gradients(world.rank, params, turn)
        given[1] = None
        unmoved = plain(params[1])
        used = [params[0], params[2]]
        wanted = [expected(world, g) for g in (given[0], given[2])]
        backward(params, given)
        optimizer.step()
        check(world, used, wanted)
        assert params[1].grad is None
        np.testing.assert_array_equal(plain(params[1]), unmoved)
        optimizer.zero_grad()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("bucket_bytes", [100, 25 << 20])
@pytest.mark.parametrize("skipper", [0, -1])
def test_rank_that_skips_a_parameter_abstains(hvd, world, skipper, bucket_bytes):
    params = parameters((70,), (200,), (9,))
    optimizer = wrap(hvd, params, bucket_bytes=bucket_bytes)
    for turn in range(3):
        given = gradients(world.rank, params, turn)
        if world.rank == skipper % world.size:
            given[turn] = None
        wanted = [expected(world, g) for g in zeros_for_missing(params, given)]
        backward(params, given)
        optimizer.step()
        check(world, params, wanted)
        optimizer.zero_grad()


@pytest.mark.parametrize("bucket_bytes", [100, 25 << 20])
def test_branch_that_depends_on_the_rank(hvd, world, bucket_bytes):
    """Even ranks use one half of the parameters, odd ranks the other, and in turns nobody any."""
    params = parameters((70,), (200,), (9,), (64, 3))
    optimizer = wrap(hvd, params, bucket_bytes=bucket_bytes)
    for turn in range(3):
        given = gradients(world.rank, params, turn)
        given = [g if i % 2 == (world.rank + turn) % 2 else None for i, g in enumerate(given)]
        wanted = [expected(world, g) for g in zeros_for_missing(params, given)]
        backward(params, given)
        optimizer.step()
        check(world, params, wanted, given)
        optimizer.zero_grad()


def test_rank_without_any_gradient(hvd, world):
    params = parameters((70,), (200,))
    optimizer = wrap(hvd, params)
    given = gradients(world.rank, params)
    idle = world.rank == world.size - 1
    if idle:
        given = [None, None]
    wanted = [expected(world, g) for g in zeros_for_missing(params, given)]
    if not idle:
        backward(params, given)
    optimizer.step()
    check(world, params, wanted, given)


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))).square().mean()


def local_gradients(model: nn.Module, batch: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(model(batch), list(model.parameters())))


def test_shared_parameter(hvd, world):
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters(), op=hvd.MajorityVote)
    params = list(model.parameters())
    for turn in range(2):
        batch = values(turn + 10 * world.rank, 6, 12)
        wanted = [expected(world, g) for g in local_gradients(model, batch)]
        model(batch).backward()
        optimizer.step()
        check(world, params, wanted)
        optimizer.zero_grad()


@pytest.mark.parametrize("mixed", [False, True])
def test_channels_last(hvd, world, mixed):
    """By element, also where ranks store the same parameter differently."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))
    if not mixed or world.rank % 2:
        model = model.to(memory_format=torch.channels_last)
    params = list(model.parameters())
    optimizer = wrap(hvd, params, ties="zero")
    given = gradients(world.rank, params)
    wanted = [expected(world, g, "zero") for g in given]
    backward(params, [g.to(memory_format=torch.preserve_format) for g in given])
    optimizer.step()
    check(world, params, wanted)


def sparse_model(sparse: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(20, 64, sparse=sparse), nn.Linear(64, 3))


def sparse_loss(model: nn.Module, rank: int) -> torch.Tensor:
    rows = torch.tensor([rank % 20, (rank + 1) % 20, 7])
    return (model(rows) * values(rank, 3, 3)).sum()


def test_sparse_as_dense(hvd, world):
    model, dense = sparse_model(), sparse_model(sparse=False)
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.5)
    optimizer = hvd.DistributedOptimizer(
        optimizer, model.named_parameters(), op=hvd.MajorityVote, sparse_as_dense=True
    )
    sparse_loss(dense, world.rank).backward()
    wanted = [expected(world, p.grad) for p in dense.parameters()]
    before = plain(params[0])
    sparse_loss(model, world.rank).backward()
    optimizer.step()
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))
    assert same_everywhere(world, *params)
    used = {7} | {(rank + i) % 20 for rank in range(world.size) for i in (0, 1)}
    unused = sorted(set(range(20)) - used)
    np.testing.assert_array_equal(plain(params[0])[unused], before[unused])
    optimizer.zero_grad()
    sparse_loss(model, world.rank).backward()
    optimizer.step()
    assert same_everywhere(world, *params)


def test_sparse_without_sparse_as_dense_is_a_clear_error(hvd, world):
    model = sparse_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters(), op=hvd.MajorityVote)

    def step() -> None:
        sparse_loss(model, world.rank).backward()
        optimizer.step()

    message = refused_alike(world, step)
    assert "sparse_as_dense" in message
    assert "0.weight" in message


def test_parameter_groups_with_rates_of_their_own(hvd, world):
    params = parameters((70,), (200,))
    groups = [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.3}]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    optimizer = hvd.DistributedOptimizer(optimizer, named(params), op=hvd.MajorityVote)
    before = [plain(p) for p in params]
    backward(params, gradients(world.rank, params))
    optimizer.step()
    for p, old, lr in zip(params, before, (0.1, 0.3), strict=True):
        np.testing.assert_allclose(plain(p), old - lr * plain(p.grad), atol=1e-6)
