"""Steps that are dense before votes begin: what they do, and what algorithms have learned by then.

Means and momentum are numpy's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from additions.esteem import Esteem
from additions.momentum import FusedMomentum, Momentum
from alike import refused_alike
from feedback import Rank
from helpers import backward, gradients, named, parameters, plain, same_everywhere
from reference import verdict

from hvd_sign.algorithms import EfSign

SHAPES = ((64, 10), (10,), (5000,), ())
KEY = "hvd_sign"
BETA = 0.75
WARM = 2


def wrap(hvd, params: list, **options):
    optimizer = torch.optim.SGD(params, lr=0.5)
    options = {"warmup_steps": WARM, "op": hvd.MajorityVote, "ties": "zero", **options}
    return hvd.DistributedOptimizer(optimizer, named_parameters=named(params), **options)


def everyones(world, params: list, turn: int) -> list[list[torch.Tensor]]:
    return [gradients(rank, params, turn) for rank in range(world.size)]


def is_mean(given: list, place: int, got: torch.Tensor) -> None:
    wanted = np.mean([plain(theirs[place]) for theirs in given], axis=0)
    np.testing.assert_allclose(plain(got), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bucket_bytes", [100, 25 << 20])
@pytest.mark.parametrize("exchange", ["sharded", "hierarchical"])
@pytest.mark.parametrize("kind", ["sign", Momentum, FusedMomentum])
def test_means_then_votes(hvd, world, kind, exchange, bucket_bytes):
    params = parameters(*SHAPES)
    algorithm = kind if kind == "sign" else kind(BETA)
    optimizer = wrap(hvd, params, algorithm=algorithm, exchange=exchange, bucket_bytes=bucket_bytes)
    beta = 0 if kind == "sign" else BETA
    kept = [[np.zeros(p.shape, np.float32) for p in params] for _ in range(world.size)]
    for turn in range(WARM + 2):
        given = everyones(world, params, turn)
        backward(params, given[world.rank])
        optimizer.step()
        for i, p in enumerate(params):
            for rank in range(world.size):
                kept[rank][i] = np.float32(beta) * kept[rank][i]
                kept[rank][i] += np.float32(1 - beta) * given[rank][i].numpy()
            if turn < WARM:
                is_mean(given, i, p.grad)
            elif exchange == "sharded":
                verdict([arrays[i] for arrays in kept], "zero").check(plain(p.grad))
            else:
                assert set(np.unique(plain(p.grad))) <= {-1, 0, 1}
        if kind != "sign":
            saved = optimizer.state_dict()[KEY]
            for i, wanted in enumerate(kept[world.rank]):
                np.testing.assert_array_equal(saved[f"v/{i}"].numpy(), wanted.reshape(-1))
        assert same_everywhere(world, *params)
        optimizer.zero_grad()


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_a_mean_leaves_nothing_unsaid(hvd, world, beta):
    """Error feedback begins with the first vote; its momentum with the first step."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, algorithm=EfSign(beta))
    sides = [Rank(p.numel(), "zero", (beta, beta) if beta else ()) for p in params]
    for turn in range(WARM + 2):
        given = gradients(world.rank, params, turn)
        backward(params, given)
        optimizer.step()
        saved = optimizer.state_dict()[KEY]
        for i, (side, g) in enumerate(zip(sides, given, strict=True)):
            side.step(g.numpy())
            if turn < WARM:
                side.e[:] = 0
            found = saved.get(f"residual/{i}", torch.zeros(side.e.shape)).numpy()
            np.testing.assert_array_equal(found, side.e)
            if beta:
                np.testing.assert_array_equal(saved[f"momentum/{i}"].numpy(), side.m)
        optimizer.zero_grad()


@pytest.mark.parametrize("saved_after", [1, WARM, WARM + 1])
def test_a_resumed_run_goes_on(hvd, world, saved_after):
    """Bit for bit, be it in the warm-up or after it."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, algorithm=Momentum(BETA))

    def steps(optimizer, params, turns):
        for turn in turns:
            optimizer.zero_grad()
            backward(params, gradients(world.rank, params, turn))
            optimizer.step()

    steps(optimizer, params, range(saved_after))
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    again = wrap(hvd, resumed, algorithm=Momentum(BETA))
    again.load_state_dict(optimizer.state_dict())
    steps(optimizer, params, range(saved_after, WARM + 3))
    steps(again, resumed, range(saved_after, WARM + 3))
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)
    values = np.unique(plain(resumed[0].grad))
    assert set(values) <= {-1, 0, 1}


def test_absent_gradients_and_dense_parameters(hvd, world):
    """A rank without a gradient counts as zeros; where nobody has one it stays None."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, min_size=11)
    for turn in range(WARM + 1):
        given = everyones(world, params, turn)
        mine = list(given[world.rank])
        mine[0] = None if world.rank == world.size - 1 else mine[0]
        mine[2] = None
        backward(params, mine)
        optimizer.step()
        assert params[2].grad is None
        if turn < WARM and world.size > 1:
            given[-1][0] = torch.zeros_like(params[0])
            is_mean(given, 0, params[0].grad)
        is_mean(given, 1, params[1].grad)
        optimizer.zero_grad()


def test_a_loss_scale_and_a_skipped_step(hvd, world):
    params = parameters(*SHAPES)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = wrap(hvd, params, grad_scaler=scaler, algorithm=Momentum(BETA), warmup_steps=3)
    kept = [np.zeros(p.shape, np.float32) for p in params]
    for turn in range(4):
        before = [plain(p) for p in params]
        given = everyones(world, params, turn)
        if turn == 1:
            given[0][1][3] = float("inf")
        mine = given[world.rank]
        scaler.scale(
            torch.stack([(p * g).sum() for p, g in zip(params, mine, strict=True)]).sum()
        ).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        for i, p in enumerate(params):
            if turn != 1:
                kept[i] = np.float32(BETA) * kept[i] + np.float32(1 - BETA) * mine[i].numpy()
            if turn in (0, 2):
                is_mean(given, i, p.grad)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        moved = any((plain(p) != old).any() for p, old in zip(params, before, strict=True))
        assert moved == (turn != 1)
        for i, wanted in enumerate(kept):
            found = optimizer.state_dict()[KEY][f"v/{i}"].numpy()
            np.testing.assert_array_equal(found, wanted.reshape(-1))
        optimizer.zero_grad()
    assert set(np.unique(plain(params[0]) - before[0])) <= {-0.5, 0, 0.5} or moved


def test_joined_ranks_in_and_after_it(hvd, world):
    """Rank r has r + 1 batches; each serves the steps of the others, dense ones and votes."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    for turn in range(world.rank + 1):
        given = everyones(world, params, turn)
        given = [[g * (turn <= rank) for g in theirs] for rank, theirs in enumerate(given)]
        backward(params, given[world.rank])
        optimizer.step()
        for i, p in enumerate(params):
            if turn < WARM:
                is_mean(given, i, p.grad)
            else:
                verdict([plain(theirs[i]) for theirs in given], "zero").check(plain(p.grad))
        optimizer.zero_grad()
    hvd.broadcast_parameters(dict(named(params)), root_rank=hvd.join())
    given = everyones(world, params, 50)
    backward(params, given[world.rank])
    optimizer.step()
    for i, p in enumerate(params):
        verdict([plain(theirs[i]) for theirs in given], "zero").check(plain(p.grad))


@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "Lion"])
def test_an_optimizer_of_signs_warms_up_by_its_own_algorithm(hvd, world, kind):
    """On means, as it would alone; then ranks vote, each with momentum of its own gradients."""
    b1, b2 = {"SignSGD": (0, 0), "Signum": (0.9, 0.9), "Lion": (0.9, 0.99)}[kind]
    params, alone = parameters(*SHAPES), parameters(*SHAPES)
    make = getattr(hvd, kind)
    optimizer = make(params, lr=0.5, ties="zero")
    optimizer = hvd.DistributedOptimizer(optimizer, named(params), warmup_steps=WARM)
    lone = make(alone, lr=0.5, ties="zero")
    kept = [[np.zeros(p.shape, np.float32) for p in params] for _ in range(world.size)]
    for turn in range(WARM + 2):
        given = everyones(world, params, turn)
        before = [plain(p) for p in params]
        backward(params, given[world.rank])
        optimizer.step()
        for i, (p, q) in enumerate(zip(params, alone, strict=True)):
            signals = []
            for rank in range(world.size):
                m, g = kept[rank][i], given[rank][i].numpy()
                signals.append(np.float32(b1) * m + np.float32(1 - b1) * g)
                kept[rank][i] = np.float32(b2) * m + np.float32(1 - b2) * g
            mean = np.mean([theirs[i].numpy() for theirs in given], axis=0)
            q.grad = torch.from_numpy(np.asarray(mean)).reshape(q.shape)
            if turn >= WARM:
                verdict(signals, "zero").check((before[i] - plain(p)) / 0.5, rtol=1e-5)
        if turn < WARM:
            lone.step()
            for p, q in zip(params, alone, strict=True):
                # But for coordinates whose mean, or momentum of it, is next to nothing.
                assert np.mean(np.abs(plain(p) - plain(q)) > 1e-5) < 0.01
        optimizer.zero_grad()
    assert not any("momentum" in kept for kept in optimizer.state_dict()["state"].values())
    assert same_everywhere(world, *params)


def test_a_rule_does_not_learn_of_means(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, op=Esteem())
    for turn in range(WARM + 1):
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        optimizer.zero_grad()
        judged = optimizer.state_dict()[KEY]["rule/judged"].numpy()
        assert (judged > 0).any() == (turn >= WARM and world.size > 1)


@pytest.mark.ranks(2)
def test_ranks_that_warm_up_otherwise(hvd, world):
    params = parameters((3,))
    message = refused_alike(world, lambda: wrap(hvd, params, warmup_steps=5 + world.rank))
    assert "warmup_steps differs between ranks: 5 on rank 0; 6 on rank 1" in message


def test_what_is_no_number_of_steps(hvd):
    params = parameters((3,))
    for bad in (-1, 2.5, True, "ten"):
        with pytest.raises(ValueError, match="warmup_steps: expected a whole number of steps"):
            wrap(hvd, params, warmup_steps=bad)
    with pytest.raises(ValueError, match="warmup_steps: only a vote has such options"):
        wrap(hvd, params, op=hvd.Average, ties=None)
    with pytest.raises(TypeError, match="warmup_steps"):
        hvd.allreduce(params[0].detach(), op=hvd.MajorityVote, warmup_steps=3)
