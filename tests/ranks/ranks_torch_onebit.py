"""Means told by signs, and 1-bit Adam, through PyTorch's optimizers, against numpy and AdamW."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from helpers import backward, gradients, named, parameters, plain, same_everywhere
from onebit import World
from ranks_torch_sign_optimizers import by_itself  # noqa: F401, a fixture

SHAPES = ((64, 10), (10,), (5000,))
KEY = "hvd_sign"
WARM = 3


def wrap(hvd, params, optimizer=None, **options):
    if optimizer is None:
        optimizer = torch.optim.SGD(params, lr=0.5)
        options.setdefault("compression", hvd.Compression.onebit(0.75))
    return hvd.DistributedOptimizer(optimizer, named_parameters=named(params), **options)


def worlds(size, params, beta=0.75, ties="zero"):
    return [World(size, p.numel(), ties, beta) for p in params]


def check(optimizer, params, sides, everyones, rank):
    """The verdicts in ``p.grad``, and this rank's residuals."""
    kept = optimizer.state_dict()[KEY]
    for ordinal, (p, side) in enumerate(zip(params, sides, strict=True)):
        given = [row[ordinal] for row in everyones]
        want = side.step([None if g is None else g.float().numpy() for g in given])
        want = torch.from_numpy(want).to(p.dtype).float().numpy()
        np.testing.assert_array_equal(plain(p.grad).reshape(-1), want)
        np.testing.assert_array_equal(kept[f"residual/{ordinal}"].numpy(), side.ranks[rank].left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_means_and_residuals(hvd, world, dtype):
    """With a gradient that is absent on a rank at times, and one that is not finite."""
    params = parameters(*SHAPES, dtype=dtype)
    optimizer, sides = wrap(hvd, params, ties="zero"), worlds(world.size, params)
    for turn in range(5):
        everyones = [gradients(rank, params, turn) for rank in range(world.size)]
        if turn in (1, 2) and world.size > 1:
            everyones[turn - 1][2] = None
        if turn == 3:
            everyones[-1][2][4500] = float("nan")
        backward(params, everyones[world.rank])
        optimizer.step()
        check(optimizer, params, sides, everyones, world.rank)
        assert same_everywhere(world, *params)
        optimizer.zero_grad()


def test_a_parameter_that_nobody_has_a_gradient_for_stays(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, ties="zero")
    for turn in range(3):
        given = gradients(world.rank, params, turn)
        given[1] = given[1] if turn == 0 else None
        optimizer.zero_grad()
        backward(params, given)
        optimizer.step()
        assert (params[1].grad is None) == (turn > 0)


def test_a_skipped_step_and_a_checkpoint_change_nothing(hvd, world):
    params = parameters(*SHAPES)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = wrap(hvd, params, grad_scaler=scaler, ties="zero")
    sides = worlds(world.size, params)
    for turn in range(5):
        everyones = [gradients(rank, params, turn) for rank in range(world.size)]
        given = [g.clone() for g in everyones[world.rank]]
        if turn == 2 and world.rank == world.size - 1:
            given[1][2] = float("inf")
        before = optimizer.state_dict()[KEY]
        if turn == 4:
            stored = io.BytesIO()
            torch.save(optimizer.state_dict(), stored)
            stored.seek(0)
            scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
            params = [torch.nn.Parameter(p.detach().clone()) for p in params]
            optimizer = wrap(hvd, params, grad_scaler=scaler, ties="zero")
            optimizer.load_state_dict(torch.load(stored))
        pairs = zip(params, given, strict=True)
        scaler.scale(torch.stack([(p * g).sum() for p, g in pairs]).sum()).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        if turn == 2:
            after = optimizer.state_dict()[KEY]
            assert all(torch.equal(after[name], before[name]) for name in before if name != "step")
        else:
            check(optimizer, params, sides, everyones, world.rank)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def test_single_votes_by_name(hvd, world):
    side = World(world.size, 500)
    for turn in range(4):
        given = [gradients(rank, parameters((500,)), turn)[0] for rank in range(world.size)]
        out = hvd.allreduce(
            given[world.rank], name="told", ties="zero", compression=hvd.Compression.onebit()
        )
        np.testing.assert_array_equal(plain(out), side.step([g.numpy() for g in given]))


def adam(hvd, params, **options):
    options = {"lr": 0.01, "weight_decay": 0.1, "warmup_steps": WARM, "ties": "zero"} | options
    return hvd.OneBitAdam(params, **options)


@pytest.mark.parametrize("frozen", [0, 2])
def test_adam_at_first_and_then_by_what_is_told(hvd, world, frozen):
    """``frozen``: so many coordinates never have a gradient, and stay."""
    params, same = parameters(*SHAPES), parameters(*SHAPES)
    optimizer = wrap(hvd, params, adam(hvd, params))
    reference = torch.optim.AdamW(same, lr=0.01, weight_decay=0.1, foreach=True)
    sides = worlds(world.size, params, 0.9)
    for turn in range(7):
        everyones = [gradients(rank, params, turn) for rank in range(world.size)]
        for given in everyones:
            given[1][:frozen] = 0
        before = [plain(p) for p in params]
        optimizer.zero_grad()
        backward(params, everyones[world.rank])
        optimizer.step()
        assert same_everywhere(world, *params)
        if turn < WARM:
            for i, p in enumerate(same):
                p.grad = torch.stack([given[i] for given in everyones]).sum(0) / world.size
            reference.step()
            for p, q in zip(params, same, strict=True):
                np.testing.assert_allclose(plain(p), plain(q), rtol=1e-5, atol=1e-6)
            for i, side in enumerate(sides):
                for rank, given in zip(side.ranks, everyones, strict=True):
                    rank.m = np.float32(0.9) * rank.m + np.float32(0.1) * given[i].numpy().ravel()
            continue
        for i, (p, side) in enumerate(zip(params, sides, strict=True)):
            told = side.step([given[i].numpy() for given in everyones]).reshape(p.shape)
            v = plain(reference.state[same[i]]["exp_avg_sq"]) / (1 - 0.999**WARM)
            root = np.where(v == 0, np.inf, np.sqrt(v)) + 1e-8
            moved = 0.01 * np.clip(told / (1 - 0.9 ** (turn + 1)) / root, -1, 1)
            want = before[i] * (1 - 0.01 * 0.1) - moved
            np.testing.assert_allclose(plain(p), want, rtol=2e-4, atol=1e-6)
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg_sq"}


def turns(optimizer, params, rank, first, last):
    for turn in range(first, last):
        given = gradients(rank, params, turn)
        given[1] = None if turn == 5 else given[1]
        optimizer.zero_grad()
        backward(params, given)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_alone_as_in_a_world_of_one(hvd, world, by_itself, dtype):  # noqa: F811
    alone, among = parameters(*SHAPES, dtype=dtype), parameters(*SHAPES, dtype=dtype)
    one, other = adam(hvd, alone), adam(hvd, among)
    other = wrap(hvd, among, other, process_set=by_itself)
    turns(one, alone, world.rank, 0, 8)
    turns(other, among, world.rank, 0, 8)
    for p, q in zip(alone, among, strict=True):
        np.testing.assert_array_equal(plain(p), plain(q))
    world.Barrier()


@pytest.mark.parametrize("saved_at", [1, 6])
def test_alone_it_goes_on_from_what_was_saved(hvd, tmp_path, saved_at):
    params = parameters(*SHAPES)
    optimizer = adam(hvd, params)
    turns(optimizer, params, 1, 0, saved_at)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    fresh = adam(hvd, resumed, lr=1.0)
    fresh.load_state_dict(torch.load(tmp_path / "state"))
    copied, of_copy = copy.deepcopy((params, optimizer))
    stored, of_stored = pickle.loads(pickle.dumps((params, optimizer)))
    for opt, ps in ((optimizer, params), (fresh, resumed), (of_copy, copied), (of_stored, stored)):
        turns(opt, ps, 1, saved_at, 9)
    for other in (resumed, copied, stored):
        for p, q in zip(params, other, strict=True):
            assert torch.equal(p, q)


def test_wrapped_it_goes_on_from_what_was_saved(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, adam(hvd, params))
    turns(optimizer, params, world.rank, 0, 5)
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    fresh = wrap(hvd, resumed, adam(hvd, resumed))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    turns(optimizer, params, world.rank, 5, 8)
    turns(fresh, resumed, world.rank, 5, 8)
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)


def test_groups_that_do_not_vote_go_on_by_adam(hvd, world):
    params, same = parameters(*SHAPES), parameters(*SHAPES)
    groups = [{"params": params[:1]}, {"params": params[1:], "vote": False, "lr": 0.02}]
    optimizer = wrap(hvd, params, adam(hvd, groups))
    reference = torch.optim.AdamW(same[1:], lr=0.02, weight_decay=0.1)
    for turn in range(6):
        everyones = [gradients(rank, params, turn) for rank in range(world.size)]
        optimizer.zero_grad()
        backward(params, everyones[world.rank])
        optimizer.step()
        for i, p in enumerate(same[1:], 1):
            p.grad = torch.stack([given[i] for given in everyones]).sum(0) / world.size
        reference.step()
    for p, q in zip(params[1:], same[1:], strict=True):
        np.testing.assert_allclose(plain(p), plain(q), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused(hvd, world):
    params = parameters((3,))
    for wrong, sentence in (
        ({"warmup_steps": 0}, "warmup_steps: expected a whole number of steps from 1, got 0"),
        ({"eps": 0.0}, "eps: expected a finite number above zero, got 0.0"),
        ({"betas": (0.9, 1.0)}, r"betas: expected beta2 in \[0, 1\), got 1.0"),
        ({"betas": (1.0, 0.9)}, r"onebit: beta: expected a number in \[0, 1\), got 1.0"),
        ({"lr": -1.0}, "lr: expected a finite number from 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            adam(hvd, params, **wrong)
    with pytest.raises(ValueError, match="warmup_steps: expected 3, as of OneBitAdam, got 4"):
        wrap(hvd, params, adam(hvd, params), warmup_steps=4)
    with pytest.raises(ValueError, match="OneBitAdam has its own, got another one"):
        wrap(hvd, params, adam(hvd, params), compression=hvd.Compression.sign)
    with pytest.raises(ValueError, match=r"scale: algorithm=OneBit.* expected 'mean_abs'"):
        wrap(hvd, params, scale="none")
    late = adam(hvd, parameters((3,), (4,)))
    first, second = late.param_groups[0]["params"]
    for turn in range(WARM + 1):
        first.grad = torch.ones(3)
        second.grad = torch.ones(4) if turn == WARM else None
        if turn < WARM:
            late.step()
    before = plain(first)
    with pytest.raises(ValueError, match=r"shape \(4,\): it has had no gradient in the warm-up"):
        late.step()
    np.testing.assert_array_equal(plain(first), before)
