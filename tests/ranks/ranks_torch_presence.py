"""Gradients that are not there, on some ranks or on all, and gradients that are sparse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import backward, expected, gradients, named, parameters, plain, same_everywhere
from torch import nn

SHAPES = ((70,), (200,), (0,), (9,))
WAYS = {
    "sharded": {},
    "allgather": {"exchange": "allgather"},
    "own buckets": {"bucket_bytes": 1},
    "groups": {"groups": 2},
    "exact": {"ties": "zero"},
    "scaled": {"scale": "mean_abs"},
    "late": {"nonfinite": "skip"},
    "nodes": {"exchange": "hierarchical"},
    "node means": {"exchange": "hierarchical", "local": "mean"},
}


def wrap(hvd, params: list, kind: type = torch.optim.SGD, **options):
    inner = kind(params, lr=0.5, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    options.setdefault("op", hvd.MajorityVote)
    return hvd.DistributedOptimizer(inner, named(params), **options)


@pytest.mark.parametrize("way", WAYS)
def test_frozen_after_wrapping(hvd, world, way):
    """As in plain PyTorch: no momentum and no decay moves what nobody has a gradient for."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, **WAYS[way])
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1
    backward(params, gradients(world.rank, params))
    optimizer.step()
    optimizer.zero_grad()
    params[1].requires_grad_(False)
    frozen = plain(params[1])
    for turn in range(2):
        moved = [params[0], params[3]]
        before = [plain(p) for p in moved]
        backward(moved, gradients(world.rank, moved, turn))
        optimizer.step()
        assert [p.grad is None for p in params] == [False, True, True, False]
        np.testing.assert_array_equal(plain(params[1]), frozen)
        assert all((plain(p) != old).any() for p, old in zip(moved, before, strict=True))
        optimizer.zero_grad()
    assert same_everywhere(world, *params)


@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_of_zeros_is_one(hvd, world, way):
    """On the last rank alone: its verdict is zero, and momentum goes on, on all ranks."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, **WAYS[way])
    backward(params, gradients(world.rank, params))
    optimizer.step()
    optimizer.zero_grad()
    before = plain(params[1])
    momentum = plain(optimizer.state[params[1]]["momentum_buffer"])
    given = gradients(world.rank, params, 1)
    given[1] = torch.zeros(200) if world.rank == world.size - 1 else None
    given[2] = None
    backward(params, given)
    optimizer.step()
    assert [p.grad is None for p in params] == [False, False, True, False]
    np.testing.assert_array_equal(plain(params[1].grad), 0)
    np.testing.assert_allclose(plain(params[1]), before - 0.5 * 0.9 * momentum, atol=1e-6)
    assert same_everywhere(world, *params)


def test_a_skipped_step_leaves_none(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, nonfinite="skip")
    given = gradients(world.rank, params)
    given[0][3] = float("nan")
    given[1] = None
    backward(params, given)
    before = [plain(p) for p in params]
    optimizer.step()
    assert params[1].grad is None
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.SGD])
@pytest.mark.parametrize(
    ("way", "dense"),
    [
        ("vote", True),
        pytest.param("mean", True, marks=pytest.mark.runtime("mpi")),
        pytest.param("mean", False, marks=pytest.mark.runtime("mpi")),
    ],
)
def test_an_empty_batch_on_one_rank(hvd, world, way, dense, kind):
    """Its verdict, or mean, is sparse too: SparseAdam knows no other."""
    embedding = nn.Embedding(9, 64, sparse=True)
    nn.init.ones_(embedding.weight)
    op = {"vote": hvd.MajorityVote, "mean": hvd.Average}[way]
    optimizer = wrap(hvd, [embedding.weight], kind, op=op, sparse_as_dense=dense)
    # A mean that SGD steps on is known to be sparse once it has been so.
    known = way == "vote" or kind is torch.optim.SparseAdam
    for turn in range(3):
        before = plain(embedding.weight)
        idle = world.rank == (0 if turn % 2 else world.size - 1) and (known or turn > 0)
        if not idle:
            embedding(torch.tensor([1, 4])).sum().backward()
        optimizer.step()
        assert embedding.weight.grad.is_sparse
        assert same_everywhere(world, embedding.weight, embedding.weight.grad)
        moved = np.unique(np.nonzero(plain(embedding.weight) - before)[0])
        assert moved.tolist() == [1, 4]
        optimizer.zero_grad()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
def test_sparse_on_some_ranks_is_sparse_or_dense_on_all(hvd, world, ties):
    weight = nn.Parameter(torch.ones(6, 64))
    optimizer = wrap(hvd, [weight], sparse_as_dense=True, ties=ties)
    rows = torch.tensor([2, 3])
    given = torch.zeros(6, 64)
    given[rows] = 1
    nn.functional.embedding(rows, weight, sparse=world.rank == 0).sum().backward()
    assert weight.grad.is_sparse == (world.rank == 0)
    optimizer.step()
    assert len(set(world.allgather(weight.grad.is_sparse))) == 1
    np.testing.assert_array_equal(plain(weight.grad), plain(given))
    assert same_everywhere(world, weight)


def test_nobody_has_a_sparse_gradient(hvd, world):
    embedding = nn.Embedding(9, 64, sparse=True)
    optimizer = wrap(hvd, [embedding.weight], torch.optim.SparseAdam, sparse_as_dense=True)
    before = plain(embedding.weight)
    optimizer.step()
    assert embedding.weight.grad is None
    np.testing.assert_array_equal(plain(embedding.weight), before)


@pytest.mark.parametrize("kind", ["vote", pytest.param("mean", marks=pytest.mark.runtime("mpi"))])
def test_gradients_that_are_negated_later(hvd, world, kind):
    """PyTorch may hand out memory with a note that says: negate."""
    params = parameters((70,), (8, 9))
    op = {"vote": hvd.MajorityVote, "mean": hvd.Average}[kind]
    optimizer = wrap(hvd, params, op=op)
    given = gradients(world.rank, params)
    wanted = [expected(world, g) for g in given]
    rows = [world.allgather(plain(g)) for g in given]
    for p, g in zip(params, given, strict=True):
        p.grad = torch._neg_view(-g)
    assert all(p.grad.is_neg() for p in params)
    optimizer.step()
    for p, want, row in zip(params, wanted, rows, strict=True):
        if kind == "vote":
            want.check(plain(p.grad))
        else:
            np.testing.assert_allclose(plain(p.grad), sum(row) / world.size, atol=1e-6)
