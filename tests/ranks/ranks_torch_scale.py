"""Training with the workers' common scale, and with a worker that is broken for one step."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    backward,
    expected,
    gradients,
    mean_abs,
    named,
    parameters,
    plain,
    same_everywhere,
    values,
)


def wrap(hvd, params: list, lr: float = 0.5, **options):
    return hvd.DistributedOptimizer(
        torch.optim.SGD(params, lr=lr),
        named_parameters=named(params),
        op=hvd.MajorityVote,
        scale="mean_abs",
        **options,
    )


def test_scale_mean_abs(hvd, world):
    params = parameters((64, 10), (10,), (), (5000,), (3, 4, 5))
    optimizer = wrap(hvd, params, ties="zero", bucket_bytes=4096)
    for turn in range(2):
        given = gradients(world.rank, params, turn)
        wanted = [(expected(world, g, "zero"), mean_abs(world, g)) for g in given]
        backward(params, given)
        optimizer.step()
        for p, (want, scale) in zip(params, wanted, strict=True):
            want.check(plain(p.grad), scale, rtol=3e-6)
        assert same_everywhere(world, *params)
        optimizer.zero_grad()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("exchange", ["sharded", "allgather", "hierarchical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_loss_a_million_times_too_large_leaves_the_model_whole(hvd, world, exchange, dtype):
    weight, bias = parameters((30, 1), (1,), dtype=dtype)
    optimizer = wrap(hvd, [weight, bias], lr=0.05, exchange=exchange)
    truth = values(77, 30, 1, dtype=dtype)
    losses = []
    for step in range(80):
        x = values(1000 * step + world.rank, 40, 30, dtype=dtype)
        loss = ((x @ (weight - truth) + bias) ** 2).mean()
        losses.append(loss.item())
        broken = step == 40 and world.rank == 1
        # In fp64 even beyond fp32, in which the scale travels.
        optimizer.zero_grad()
        (loss * (1e6 if dtype == torch.float32 else 1e200) if broken else loss).backward()
        optimizer.step()
    assert same_everywhere(world, weight, bias)
    assert max(losses[41:]) < losses[0]
    assert losses[-1] < 0.1 * losses[0]
