"""Error feedback through PyTorch's optimizer and single votes, against numpy."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from feedback import Rank
from helpers import backward, gradients, named, parameters, plain, same_everywhere
from reference import lower_median, verdict

SHAPES = ((64, 10), (10,), (5000,))
KEY = "hvd_sign"


def wrap(hvd, params, **options):
    options.setdefault("compression", hvd.Compression.ef_sign())
    return hvd.DistributedOptimizer(
        torch.optim.SGD(params, lr=0.5), named_parameters=named(params), ties="zero", **options
    )


class Sides:
    """What every rank has left of every parameter."""

    def __init__(self, size, params, betas=()):
        self.rows = [[Rank(p.numel(), "zero", betas) for p in params] for _ in range(size)]

    def check(self, optimizer, params, everyones, rank):
        """The verdicts in ``p.grad``, and this rank's residuals."""
        for ordinal, p in enumerate(params):
            sides, signals = [row[ordinal] for row in self.rows], []
            for side, given in zip(sides, everyones, strict=True):
                g = given[ordinal]
                signals.append(side.step(None if g is None else g.float().numpy()))
            want = verdict([signal.reshape(p.shape) for signal in signals], "zero")
            scale = torch.tensor(lower_median([float(side.sent) for side in sides])).to(p.dtype)
            want.check(plain(p.grad), float(scale))
        kept = optimizer.state_dict()[KEY]
        for ordinal, side in enumerate(self.rows[rank]):
            np.testing.assert_array_equal(kept[f"residual/{ordinal}"].numpy(), side.e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.75])
def test_verdicts_and_residuals(hvd, world, beta, dtype):
    """With a gradient that is absent on a rank at times, and one that is not finite."""
    params = parameters(*SHAPES, dtype=dtype)
    optimizer = wrap(hvd, params, compression=hvd.Compression.ef_sign(beta))
    sides = Sides(world.size, params, (beta, beta) if beta else ())
    for turn in range(5):
        everyones = [gradients(rank, params, turn) for rank in range(world.size)]
        if turn in (1, 2) and world.size > 1:
            everyones[turn - 1][2] = None
        if turn == 3:
            everyones[-1][2][4500] = float("nan")
        backward(params, everyones[world.rank])
        optimizer.step()
        sides.check(optimizer, params, everyones, world.rank)
        assert same_everywhere(world, *params)
        optimizer.zero_grad()


def test_a_loss_scale_changes_nothing(hvd, world):
    params = parameters(*SHAPES)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    optimizer = wrap(hvd, params, grad_scaler=scaler)
    sides = Sides(world.size, params)
    for turn in range(6):
        everyones = [gradients(rank, params, turn) for rank in range(world.size)]
        skipped = turn == 3
        given = [g.clone() for g in everyones[world.rank]]
        if skipped and world.rank == world.size - 1:
            given[1][2] = float("inf")
        kept = optimizer.state_dict()[KEY]
        pairs = zip(params, given, strict=True)
        scaler.scale(torch.stack([(p * g).sum() for p, g in pairs]).sum()).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        if skipped:
            for name, array in optimizer.state_dict()[KEY].items():
                assert name == "step" or torch.equal(array, kept[name])
        else:
            sides.check(optimizer, params, everyones, world.rank)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 128


def test_goes_on_from_a_checkpoint_bit_for_bit(hvd, world):
    def turns(optimizer, params, first, last):
        for turn in range(first, last):
            optimizer.zero_grad()
            backward(params, gradients(world.rank, params, turn))
            optimizer.step()

    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    turns(optimizer, params, 0, 3)
    stored = io.BytesIO()
    torch.save(optimizer.state_dict(), stored)
    stored.seek(0)
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    fresh = wrap(hvd, resumed)
    fresh.load_state_dict(torch.load(stored))
    for opt, ps in ((optimizer, params), (fresh, resumed)):
        turns(opt, ps, 3, 6)
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)
    one, other = optimizer.state_dict()[KEY], fresh.state_dict()[KEY]
    assert one.keys() == other.keys()
    assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)


@pytest.mark.parametrize("how", ["compression", "algorithm"])
def test_single_votes_by_name(hvd, world, how):
    asked = {"op": hvd.MajorityVote, "algorithm": "ef_sign"}
    if how == "compression":
        asked = {"compression": hvd.Compression.ef_sign()}
    sides = [Rank(500, "zero") for _ in range(world.size)]
    for turn in range(4):
        given = [gradients(rank, parameters((500,)), turn)[0] for rank in range(world.size)]
        signals = [side.step(g.numpy()) for side, g in zip(sides, given, strict=True)]
        out = hvd.allreduce(given[world.rank], name=f"by {how}", ties="zero", **asked)
        scale = lower_median([float(side.sent) for side in sides])
        verdict(signals, "zero").check(plain(out), scale)


def test_a_scale_of_none_is_refused(hvd):
    with pytest.raises(ValueError, match=r"scale: algorithm=EfSign.* expected 'mean_abs'"):
        wrap(hvd, parameters((3,)), scale="none")
