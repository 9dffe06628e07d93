"""Gradients that each rank clips before the vote: what momentum, scales and means make of them.

What is clipped is told by PyTorch's own clip_grad_norm_ and clip_grad_value_.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from additions.momentum import FusedMomentum
from alike import refused_alike
from helpers import backward, gradients, named, parameters, plain
from reference import lower_median, verdict

SHAPES = ((64, 10), (10,), (5000,), ())
KEY = "hvd_sign"
BETA = 0.75
CLIPS = [{"clip_value": 0.5}, {"clip_norm": 2.0}, {"clip_norm": 1e6}]


def wrap(hvd, params: list, **options):
    optimizer = torch.optim.SGD(params, lr=0.5)
    options = {"op": hvd.MajorityVote, "ties": "zero", **options}
    return hvd.DistributedOptimizer(optimizer, named_parameters=named(params), **options)


def clipped(given: list, clip_value=None, clip_norm=None) -> list:
    """By PyTorch's own, in fp64; None stays None."""
    holders = [torch.nn.Parameter(g.double()) for g in given if g is not None]
    for holder in holders:
        holder.grad = holder.detach().clone()
    if clip_value is not None:
        torch.nn.utils.clip_grad_value_(holders, clip_value)
    else:
        torch.nn.utils.clip_grad_norm_(holders, clip_norm)
    rest = iter(holders)
    return [None if g is None else next(rest).grad for g in given]


@pytest.mark.parametrize("bucket_bytes", [100, 25 << 20])
@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_momentum_takes_in_what_is_clipped(hvd, world, clip, bucket_bytes):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, algorithm=FusedMomentum(BETA), bucket_bytes=bucket_bytes, **clip)
    kept = [[np.zeros(p.shape) for p in params] for _ in range(world.size)]
    for turn in range(3):
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        for rank in range(world.size):
            for i, g in enumerate(clipped(gradients(rank, params, turn), **clip)):
                kept[rank][i] = BETA * kept[rank][i] + (1 - BETA) * plain(g)
        saved = optimizer.state_dict()[KEY]
        for i, p in enumerate(params):
            mine = kept[world.rank][i].reshape(-1)
            np.testing.assert_allclose(saved[f"v/{i}"].numpy(), mine, rtol=1e-4, atol=1e-7)
            verdict([arrays[i] for arrays in kept], "zero").check(plain(p.grad))
        optimizer.zero_grad()


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_a_sign_stays_and_sizes_shrink(hvd, world, clip):
    """The scale of ``mean_abs``, and the means of what is dense."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, scale="mean_abs", min_size=11, **clip)
    backward(params, gradients(world.rank, params))
    optimizer.step()
    raw = [gradients(rank, params) for rank in range(world.size)]
    given = [clipped(theirs, **clip) for theirs in raw]
    for i, p in enumerate(params):
        if p.numel() < 11:
            wanted = np.mean([plain(theirs[i]) for theirs in given], axis=0)
            np.testing.assert_allclose(plain(p.grad), wanted, rtol=1e-5, atol=1e-7)
        else:
            scale = lower_median([float(theirs[i].abs().mean()) for theirs in given])
            signs = verdict([plain(theirs[i]) for theirs in raw], "zero")
            signs.check(plain(p.grad), scale, rtol=1e-5)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_passes_are_clipped_as_one_and_absent_gradients_have_no_norm(hvd, world, clip):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, min_size=10**6, backward_passes_per_step=2, **clip)
    for turn in range(2):
        given = []
        for rank in range(world.size):
            both = [gradients(rank, params, 2 * turn), gradients(rank, params, 2 * turn + 1)]
            sums = [a + b for a, b in zip(*both, strict=True)]
            sums[2] = None if rank == 0 else sums[2]
            given.append(clipped(sums, **clip))
        for half in range(2):
            mine = gradients(world.rank, params, 2 * turn + half)
            mine[2] = None if world.rank == 0 else mine[2]
            backward(params, mine)
        optimizer.step()
        for i, p in enumerate(params):
            theirs = [np.zeros(p.shape) if g[i] is None else plain(g[i]) for g in given]
            if p.grad is not None:
                np.testing.assert_allclose(
                    plain(p.grad), np.mean(theirs, axis=0), rtol=1e-4, atol=1e-6
                )
        assert (params[2].grad is None) == (world.size == 1)
        optimizer.zero_grad()


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_unscaled_and_what_is_not_finite_is_seen(hvd, world, clip):
    params = parameters(*SHAPES)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = wrap(hvd, params, min_size=10**6, grad_scaler=scaler, **clip)
    for turn in range(3):
        before = [plain(p) for p in params]
        given = [gradients(rank, params, turn) for rank in range(world.size)]
        if turn == 1:
            given[0][1][3] = float("inf")
        mine = given[world.rank]
        scaler.scale(
            torch.stack([(p * g).sum() for p, g in zip(params, mine, strict=True)]).sum()
        ).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        if turn != 1:
            everyones = [clipped(theirs, **clip) for theirs in given]
            for i, p in enumerate(params):
                wanted = np.mean([plain(theirs[i]) for theirs in everyones], axis=0)
                np.testing.assert_allclose(plain(p.grad), wanted, rtol=1e-4, atol=1e-6)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        moved = any((plain(p) != old).any() for p, old in zip(params, before, strict=True))
        assert moved == (turn != 1)
        optimizer.zero_grad()


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_rest_of_what_is_not_finite_is_clipped(hvd, world, bad, clip):
    """One chunk of rank 0 counts as zeros; the norm is that of the finite coordinates."""
    params = parameters((9000,), (70,))
    optimizer = wrap(hvd, params, min_size=10**6, **clip)
    given = [gradients(rank, params) for rank in range(world.size)]
    given[0][0][5000] = 0.0
    wanted = [clipped(theirs, **clip) for theirs in given]
    wanted[0][0][4096:8192] = 0
    mine = given[world.rank]
    if world.rank == 0:
        mine[0][5000] = bad
    for p, g in zip(params, mine, strict=True):
        p.grad = g.clone()
    optimizer.step()
    for i, p in enumerate(params):
        mean = np.mean([plain(theirs[i]) for theirs in wanted], axis=0)
        np.testing.assert_allclose(plain(p.grad), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_sparse_gradients(hvd, world, clip):
    torch.manual_seed(0)
    model = torch.nn.Embedding(20, 8, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer = hvd.DistributedOptimizer(
        optimizer, op=hvd.MajorityVote, min_size=1000, sparse_as_dense=True, **clip
    )
    (model(torch.tensor([3, 3, world.rank])) * 5).sum().backward()
    mine = clipped([model.weight.grad.to_dense()], **clip)[0]
    optimizer.step()
    wanted = np.mean(world.allgather(plain(mine)), axis=0)
    np.testing.assert_allclose(plain(model.weight.grad), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.ranks(2)
def test_ranks_that_clip_otherwise(hvd, world):
    params = parameters((3,))
    message = refused_alike(world, lambda: wrap(hvd, params, clip_norm=1.0 + world.rank))
    assert "clip_norm differs between ranks: 1.0 on rank 0; 2.0 on rank 1" in message


@pytest.mark.parametrize("bad", [0, -1.0, float("inf"), "one"])
@pytest.mark.parametrize("name", ["clip_value", "clip_norm"])
def test_what_clips_nothing(hvd, name, bad):
    params = parameters((3,))
    with pytest.raises(ValueError, match=f"{name}: expected a finite number above zero"):
        wrap(hvd, params, **{name: bad})
    with pytest.raises(ValueError, match=f"{name}: only a vote has such options"):
        wrap(hvd, params, op=hvd.Average, ties=None, **{name: 1.0})


def test_one_of_them(hvd):
    with pytest.raises(ValueError, match="clip_value, clip_norm: expected one of them"):
        wrap(hvd, parameters((3,)), clip_value=1.0, clip_norm=2.0)
