"""Gradients and results that somebody changes: while ranks exchange them, and before they step."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest
import torch
from helpers import (
    backward,
    expected,
    gradients,
    named,
    other_module,
    parameters,
    plain,
    same_everywhere,
)

from hvd_sign.devices import Operand
from hvd_sign_torch.devices import TensorOperations

SHAPES = ((64, 10), (10,), (5000,))
KINDS = ("vote", pytest.param("mean", marks=pytest.mark.runtime("mpi")))


def wrap(hvd, params: list, kind: str = "vote", **options):
    op = {"vote": hvd.MajorityVote, "mean": hvd.Average}[kind]
    optimizer = torch.optim.SGD(params, lr=0.5)
    return hvd.DistributedOptimizer(optimizer, named(params), op=op, **options)


def check_step(world, params: list, optimizer, kind: str, turn: int) -> None:
    """A step as it should be: nothing is left of what was wrong before."""
    given = gradients(world.rank, params, turn)
    rows = [world.allgather(plain(g)) for g in given]
    wanted = [expected(world, g) for g in given]
    backward(params, given)
    optimizer.step()
    for p, row, want in zip(params, rows, wanted, strict=True):
        if kind == "vote":
            want.check(plain(p.grad))
        else:
            np.testing.assert_allclose(plain(p.grad), sum(row) / world.size, atol=1e-5)
    optimizer.zero_grad()


def clip(model: torch.nn.ParameterList) -> None:
    torch.nn.utils.clip_grad_norm_(model, 0.1)


def clip_one_by_one(model: torch.nn.ParameterList) -> None:
    torch.nn.utils.clip_grad_norm_(model, 0.1, foreach=False)


def scale(model: torch.nn.ParameterList) -> None:
    for p in model:
        p.grad.mul_(0.5)


def forget(model: torch.nn.ParameterList) -> None:
    model.zero_grad()


def zero(model: torch.nn.ParameterList) -> None:
    model.zero_grad(set_to_none=False)


def replace(model: torch.nn.ParameterList) -> None:
    for p in model:
        p.grad = p.grad.clone()


CHANGES = (clip, clip_one_by_one, scale, forget, zero, replace)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_between_backward_and_step(hvd, world, change, kind):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, kind)
    before = [plain(p) for p in params]
    backward(params, gradients(world.rank, params))
    change(torch.nn.ParameterList(params))
    with pytest.raises(RuntimeError) as caught:
        optimizer.step()
    for words in (
        "p.grad of 'layer.0', 'layer.1', 'layer.2' was changed or replaced after backward()",
        "optimizer.synchronize()",
        "optimizer.skip_synchronize()",
        {"mean": "no option clips gradients before it"}.get(
            kind, "clip_value= and clip_norm= of hvd.DistributedOptimizer clip gradients before it"
        ),
    ):
        assert words in str(caught.value)
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)
    optimizer.zero_grad()
    check_step(world, params, optimizer, kind, 1)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [clip, forget], ids=lambda change: change.__name__)
def test_a_change_on_one_rank(hvd, world, change, kind):
    """Nobody waits: that rank does not step, the others do, and the next votes are in order."""
    params = parameters(*SHAPES, (3,))
    optimizer = wrap(hvd, params, kind, **({"bucket_bytes": 300} if kind == "vote" else {}))
    before = [plain(p) for p in params]
    backward(params, gradients(world.rank, params))
    if world.rank == world.size - 1:
        change(torch.nn.ParameterList(params))
        with pytest.raises(RuntimeError, match=r"'layer\.2' and 1 others was changed"):
            optimizer.step()
    else:
        optimizer.step()
    moved = [not np.array_equal(plain(p), old) for p, old in zip(params, before, strict=True)]
    assert any(moved) == (world.rank != world.size - 1)
    optimizer.zero_grad()
    hvd.broadcast_parameters(dict(named(params)), root_rank=0)
    check_step(world, params, optimizer, kind, 1)
    assert same_everywhere(world, *params)


def test_a_gradient_lost_between_two_passes(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, backward_passes_per_step=2)
    backward(params[:2], gradients(world.rank, params)[:2])
    params[1].grad = None
    with pytest.raises(RuntimeError, match=r"p\.grad of 'layer\.1' was changed"):
        optimizer.step()


def test_changes_between_two_passes_are_the_users(hvd, world):
    """What is voted on is what the last pass leaves."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, backward_passes_per_step=2)
    first, second = (gradients(world.rank, params, turn) for turn in range(2))
    backward(params, first)
    clip(torch.nn.ParameterList(params))
    wanted = [expected(world, p.grad + g) for p, g in zip(params, second, strict=True)]
    backward(params, second)
    optimizer.step()
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_are_parts_of_one_tensor(hvd, world, kind):
    """Autograd makes views of one tensor, and adds to one while another is being exchanged."""
    params = parameters((8, 4), (8, 4), (8, 4))
    optimizer = wrap(hvd, params, kind, backward_passes_per_step=2)
    weights = gradients(world.rank, params)
    local = [2 * w for w in weights]
    wanted = [expected(world, g) for g in local]
    rows = [world.allgather(plain(g)) for g in local]
    for _ in range(2):
        (torch.cat(params) * torch.cat(weights)).sum().backward()
    optimizer.step()
    for p, want, row in zip(params, wanted, rows, strict=True):
        if kind == "vote":
            want.check(plain(p.grad))
        else:
            np.testing.assert_allclose(plain(p.grad), sum(row) / world.size, atol=1e-5)


def test_gradients_in_a_buffer_of_the_users(hvd, world):
    params = parameters((70,), (9, 5))
    optimizer = wrap(hvd, params)
    flat = torch.zeros(115)
    for turn in range(2):
        flat.zero_()
        for p, part in zip(params, flat.split([70, 45]), strict=True):
            p.grad = part.view_as(p)
        check_step(world, params, optimizer, "vote", turn)


def test_tensors_on_a_device_are_no_change(hvd, world, monkeypatch):
    """Their verdicts are written by PyTorch, which counts that as changes."""

    def on_a_device(signal, out, *factors):
        return Operand(TensorOperations(out), signal, out, *factors)

    monkeypatch.setattr("hvd_sign_torch.gradient_votes.operand_of", on_a_device)
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    for turn in range(2):
        check_step(world, params, optimizer, "vote", turn)


@pytest.mark.ranks(2, 2)
def test_a_compiled_model(hvd, world):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    params = list(model.parameters())
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = wrap(hvd, params)
    for turn in range(2):
        batch = torch.full((3, 6), world.rank + turn + 1.0)
        local = torch.autograd.grad(model(batch).square().mean(), params)
        wanted = [expected(world, g) for g in local]
        compiled(batch).square().mean().backward()
        optimizer.step()
        for p, want in zip(params, wanted, strict=True):
            want.check(plain(p.grad))
        optimizer.zero_grad()
    compiled(batch).square().mean().backward()
    clip(torch.nn.ParameterList(params))
    with pytest.raises(RuntimeError, match="was changed or replaced"):
        optimizer.step()


def test_a_sparse_gradient(hvd, world):
    embedding = torch.nn.Embedding(9, 64, sparse=True)
    optimizer = wrap(hvd, [embedding.weight], sparse_as_dense=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    embedding.weight.grad.mul_(0.5)
    with pytest.raises(RuntimeError, match="was changed or replaced"):
        optimizer.step()
    optimizer.zero_grad()
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert sorted(plain(embedding.weight.grad).sum(1)) == [0] * 7 + [64] * 2


def scaled(params: list, given: list, scaler: torch.amp.GradScaler) -> None:
    pairs = zip(params, given, strict=True)
    scaler.scale(torch.stack([(p * g).sum() for p, g in pairs]).sum()).backward()


@pytest.mark.parametrize("recipe", ["synchronized", "plain"])
def test_loss_scaling_that_the_vote_knows_nothing_of(hvd, world, recipe):
    """Horovod's recipe, and PyTorch's: verdicts would become 2^-16 of what they are."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    scaler = torch.amp.GradScaler("cpu")
    before = [plain(p) for p in params]
    scaled(params, gradients(world.rank, params), scaler)
    within = contextlib.nullcontext()
    if recipe == "synchronized":
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        within = optimizer.skip_synchronize()
    remedy = r"DistributedOptimizer\(..., grad_scaler=scaler\)"
    with within, pytest.raises(ValueError, match=remedy):
        scaler.step(optimizer)
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)


@pytest.mark.runtime("mpi")
def test_loss_scaling_of_means(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, "mean")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    given = gradients(world.rank, params)
    scaled(params, given, scaler)
    with pytest.raises(AssertionError, match="synchronize"):
        scaler.step(optimizer)
    optimizer.synchronize()
    scaler.unscale_(optimizer)
    with optimizer.skip_synchronize():
        scaler.step(optimizer)
    for p, g in zip(params, given, strict=True):
        mean = sum(world.allgather(plain(g))) / world.size
        np.testing.assert_allclose(plain(p.grad), mean, atol=1e-5)


def test_unscaling_before_the_votes_have_ended(hvd, world):
    params = parameters(*SHAPES)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = wrap(hvd, params, grad_scaler=scaler)
    scaled(params, gradients(world.rank, params), scaler)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"'layer\.0', 'layer\.1', 'layer\.2' was changed"):
        optimizer.synchronize()
    scaler.update()
    optimizer.zero_grad()
    scaled(params, gradients(world.rank, params, 1), scaler)
    with pytest.raises(AssertionError, match="synchronize"):
        scaler.step(optimizer)
    optimizer.synchronize()


def test_a_scaler_that_is_switched_off(hvd, world):
    params = parameters(*SHAPES)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = wrap(hvd, params)
    given = gradients(world.rank, params)
    wanted = [expected(world, g) for g in given]
    scaled(params, given, scaler)
    scaler.step(optimizer)
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))


def norm(params: list, optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(params, 1.0)


def half(params: list, optimizer) -> None:
    torch.nn.utils.clip_grad_value_(params, 0.5)


def large(params: list, optimizer) -> None:
    torch.nn.utils.clip_grad_value_(params, 2.0)


def each(params: list, optimizer) -> None:
    for i, p in enumerate(params):
        p.grad.mul_(0.5**i)


def more(params: list, optimizer) -> None:
    for p in params:
        p.grad.mul_(2)


@pytest.mark.parametrize(
    ("change", "factor"),
    [(norm, 1 / np.sqrt(5650)), (half, 0.5), (large, None), (each, None), (more, None)],
)
def test_verdicts_that_become_smaller(hvd, world, caplog, change, factor):
    """Told once, on rank 0, if all became so by the same factor; and never refused."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, ties="positive")
    with caplog.at_level(logging.WARNING, "hvd_sign"):
        for turn in range(2):
            backward(params, gradients(world.rank, params, turn))
            optimizer.synchronize()
            change(params, optimizer)
            left = [plain(p) - 0.5 * plain(p.grad) for p in params]
            with optimizer.skip_synchronize():
                optimizer.step()
            for p, want in zip(params, left, strict=True):
                np.testing.assert_allclose(plain(p), want, atol=1e-6)
            optimizer.zero_grad()
    said = [r.getMessage() for r in caplog.records if "verdicts were multiplied" in r.getMessage()]
    if factor is None or world.rank:
        assert said == []
    else:
        assert len(said) == 1
        assert f"multiplied by {factor:.3g} between" in said[0]
        assert "scale='mean_abs'" in said[0]


def test_norm_clipping_of_scaled_verdicts_is_no_mistake(hvd, world, caplog):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, scale="mean_abs")
    backward(params, gradients(world.rank, params))
    optimizer.synchronize()
    norm(params, optimizer)
    with caplog.at_level(logging.WARNING, "hvd_sign"), optimizer.skip_synchronize():
        optimizer.step()
    assert not [r for r in caplog.records if r.name == "hvd_sign"]


@pytest.mark.parametrize("through", ["ours", "horovods"])
def test_a_second_synchronization_is_warned_of(hvd, world, through):
    """With or without a vote, as by Horovod's own."""
    params = parameters((5,))
    module = hvd if through == "ours" else other_module(hvd)
    optimizer = module.DistributedOptimizer(torch.optim.SGD(params, lr=0.1), named(params))
    backward(params, gradients(world.rank, params))
    optimizer.synchronize()
    words = r"optimizer\.step\(\) called without optimizer\.skip_synchronize\(\) context after"
    with pytest.warns(UserWarning, match=words) as caught:
        optimizer.step()
    assert len(caught) == 1
