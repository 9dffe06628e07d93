"""Mixed precision: the scaler's factor neither reaches the verdict nor hides an overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alike import refused_alike
from helpers import expected, gradients, named, parameters, plain, same_everywhere

SHAPES = ((64, 10), (10,), (5000,))
SCALE = 1024.0


def wrap(hvd, params: list, scaler, **options):
    optimizer = torch.optim.SGD(params, lr=0.5, momentum=0.9)
    return hvd.DistributedOptimizer(
        optimizer, named(params), op=hvd.MajorityVote, grad_scaler=scaler, **options
    )


def scaled_backward(params: list, given: list, scaler) -> None:
    pairs = zip(params, given, strict=True)
    scaler.scale(torch.stack([(p * g).sum() for p, g in pairs]).sum()).backward()


def step(optimizer, scaler) -> None:
    with optimizer.skip_synchronize():
        scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("bucket_bytes", [300, 25 << 20])
def test_unscaling_gives_the_verdict(hvd, world, bucket_bytes):
    params = parameters(*SHAPES)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    optimizer = wrap(hvd, params, scaler, bucket_bytes=bucket_bytes)
    for turn in range(3):
        given = gradients(world.rank, params, turn)
        wanted = [expected(world, g) for g in given]
        before = [plain(p) for p in params]
        scaled_backward(params, given, scaler)
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        for p, want in zip(params, wanted, strict=True):
            want.check(plain(p.grad))
        step(optimizer, scaler)
        assert all((plain(p) != old).any() for p, old in zip(params, before, strict=True))
        assert same_everywhere(world, *params)
        assert scaler.get_scale() == SCALE
        optimizer.zero_grad()


@pytest.mark.parametrize("where", [0, -1])
def test_overflow_on_one_rank_is_seen_by_all_scalers(hvd, world, where):
    params = parameters(*SHAPES)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    optimizer = wrap(hvd, params, scaler, bucket_bytes=300)
    given = gradients(world.rank, params)
    if world.rank == where % world.size:
        given[1][2] = float("inf")
    before = [plain(p) for p in params]
    scaled_backward(params, given, scaler)
    optimizer.synchronize()
    scaler.unscale_(optimizer)
    step(optimizer, scaler)
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)
    assert world.allgather(scaler.get_scale()) == [SCALE / 2] * world.size
    optimizer.zero_grad()
    given = gradients(world.rank, params, 1)
    wanted = [expected(world, g) for g in given]
    scaled_backward(params, given, scaler)
    optimizer.synchronize()
    scaler.unscale_(optimizer)
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))
    step(optimizer, scaler)
    assert same_everywhere(world, *params)


def test_abstaining_with_a_scaler_is_refused(hvd, world):
    scaler = torch.amp.GradScaler("cpu")
    params = parameters((5,))
    message = refused_alike(world, lambda: wrap(hvd, params, scaler, nonfinite="abstain"))
    assert "grad_scaler" in message
