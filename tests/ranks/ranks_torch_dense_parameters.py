"""Parameters that go dense beside others that are voted on: who does, and what comes of it.

Means are numpy's, over what every rank was given.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alike import refused_alike
from helpers import DTYPES, backward, expected, gradients, named, parameters, plain, same_everywhere
from helpers import values as drawn

SHAPES = ((64, 10), (10,), (5000,), (), (33,), (0,))
BIG = (True, False, True, False, False, False)
KEY = "hvd_sign"


def wrap(hvd, params: list, optimizer=None, **options):
    optimizer = optimizer or torch.optim.SGD(params, lr=0.5)
    options.setdefault("named_parameters", named(params))
    return hvd.DistributedOptimizer(optimizer, op=hvd.MajorityVote, **options)


def mean(world, gradient: torch.Tensor | None, like: torch.Tensor) -> np.ndarray:
    """Over all ranks, of whom those without a gradient count as zeros."""
    given = np.zeros(tuple(like.shape)) if gradient is None else plain(gradient)
    return np.mean(world.allgather(given), axis=0)


def check(world, params: list, given: list, votes: tuple, ties: str = "coin") -> None:
    """What `given` gradients must have become; of voted ones none may be None."""
    for p, gradient, vote in zip(params, given, votes, strict=True):
        if vote:
            expected(world, gradient, ties).check(plain(p.grad))
        else:
            wanted = mean(world, gradient, p)
            tolerance = 1e-12 if p.dtype == torch.float64 else 2 * torch.finfo(p.dtype).eps
            np.testing.assert_allclose(plain(p.grad), wanted, rtol=tolerance, atol=tolerance)
        assert p.grad.dtype == p.dtype


CHOICES = {
    "predicate": lambda params: {"vote_if": lambda name, p: name in ("layer.0", "layer.2")},
    "size": lambda params: {"min_size": 34},
    "group": lambda params: {
        "optimizer": torch.optim.SGD(
            [
                {"params": [params[0], params[2]]},
                {"params": [params[1], *params[3:]], "vote": False},
            ],
            lr=0.5,
        )
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bucket_bytes", [100, 25 << 20])
@pytest.mark.parametrize("choice", CHOICES)
def test_who_goes_dense(hvd, world, choice, bucket_bytes, dtype):
    params = parameters(*SHAPES, dtype=dtype)
    optimizer = wrap(hvd, params, bucket_bytes=bucket_bytes, ties="zero", **CHOICES[choice](params))
    for turn in range(3):
        before = [plain(p) for p in params]
        given = gradients(world.rank, params, turn)
        backward(params, given)
        optimizer.step()
        check(world, params, given, BIG, "zero")
        for p, old in zip(params, before, strict=True):
            near = 4 * torch.finfo(dtype).eps
            np.testing.assert_allclose(plain(p), old - 0.5 * plain(p.grad), rtol=near, atol=near)
        assert same_everywhere(world, *params)
        optimizer.zero_grad()


@pytest.mark.parametrize("groups", [2, "lists"])
@pytest.mark.parametrize("exchange", ["sharded", "allgather", "hierarchical", "auto"])
def test_whatever_the_exchange_and_the_groups(hvd, world, exchange, groups):
    params = parameters(*SHAPES)
    lists = [[params[0], params[1]], [params[2], params[3]]]
    optimizer = wrap(
        hvd,
        params,
        exchange=exchange,
        groups=lists if groups == "lists" else groups,
        min_size=34,
        ties="zero",
        scale="mean_abs",
    )
    given = gradients(world.rank, params)
    backward(params, given)
    optimizer.step()
    for p, gradient, vote in zip(params, given, BIG, strict=True):
        if not vote:
            np.testing.assert_allclose(
                plain(p.grad), mean(world, gradient, p), rtol=1e-6, atol=1e-6
            )
    assert same_everywhere(world, *[p.grad for p in params])


def test_all_and_none(hvd, world):
    """All dense: what Horovod's own optimizer does; and nobody is asked where all are small."""
    for chosen in (False, True):
        params, others = parameters(*SHAPES), parameters(*SHAPES)
        optimizer = wrap(hvd, params, vote_if=lambda name, p, chosen=chosen: chosen)
        reducing = hvd.DistributedOptimizer(
            torch.optim.SGD(others, lr=0.5), named_parameters=named(others), op=hvd.Average
        )
        given = gradients(world.rank, params)
        for ps, opt in ((params, optimizer), (others, reducing)):
            backward(ps, given)
            opt.step()
        if chosen:
            check(world, params, given, (True,) * len(params))
        else:
            for p, q in zip(params, others, strict=True):
                np.testing.assert_allclose(plain(p), plain(q), rtol=1e-6, atol=1e-6)


def test_backward_passes_are_summed_as_horovods(hvd, world):
    params, others = parameters(*SHAPES), parameters(*SHAPES)
    optimizer = wrap(hvd, params, min_size=34, backward_passes_per_step=3)
    reducing = hvd.DistributedOptimizer(
        torch.optim.SGD(others, lr=0.5), named(others), backward_passes_per_step=3, op=hvd.Average
    )
    for ps, opt in ((params, optimizer), (others, reducing)):
        for turn in range(3):
            backward(ps, gradients(world.rank, ps, turn))
        opt.step()
    for p, q, vote in zip(params, others, BIG, strict=True):
        if not vote:
            np.testing.assert_allclose(plain(p), plain(q), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bucket_bytes", [100, 25 << 20])
def test_absent_gradients_count_as_zeros(hvd, world, bucket_bytes):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, min_size=34, bucket_bytes=bucket_bytes)
    for turn in range(2):
        given = gradients(world.rank, params, turn)
        if world.rank == world.size - 1:
            given[1] = None
        given[4] = None
        before = plain(params[4])
        backward(params, given)
        optimizer.step()
        wanted = mean(world, given[1], params[1])
        if world.size > 1:
            np.testing.assert_allclose(plain(params[1].grad), wanted, rtol=1e-6, atol=1e-6)
        else:
            assert params[1].grad is None
        assert params[4].grad is None
        np.testing.assert_array_equal(plain(params[4]), before)
        optimizer.zero_grad()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_chunks_that_are_not_finite_count_as_zeros(hvd, world, bad):
    params = parameters((9000,), (9000,))
    optimizer = wrap(hvd, params, vote_if=lambda name, p: name == "layer.0")
    given = gradients(world.rank, params)
    sound = given[1].clone()
    if world.rank == 0:
        given[1][5000] = bad
        sound[4096:8192] = 0
    for p, g in zip(params, given, strict=True):
        p.grad = g.clone()
    optimizer.step()
    np.testing.assert_allclose(
        plain(params[1].grad), mean(world, sound, sound), rtol=1e-6, atol=1e-6
    )


def test_skipped_steps(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, min_size=34, nonfinite="skip")
    for turn in range(3):
        before = [plain(p) for p in params]
        given = gradients(world.rank, params, turn)
        if turn == 1 and world.rank == world.size - 1:
            given[1][3] = float("inf")
        for p, g in zip(params, given, strict=True):
            p.grad = g.clone()
        optimizer.step()
        moved = any((plain(p) != old).any() for p, old in zip(params, before, strict=True))
        assert moved == (turn != 1)
        if turn != 1:
            check(world, params, given, BIG)


def test_a_mean_carries_the_loss_scale(hvd, world):
    params = parameters(*SHAPES)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = wrap(hvd, params, min_size=34, grad_scaler=scaler)
    for turn in range(3):
        before = [plain(p) for p in params]
        given = gradients(world.rank, params, turn)
        if turn == 1 and world.rank == 0:
            given[1][3] = float("inf")
        scaler.scale(
            torch.stack([(p * g).sum() for p, g in zip(params, given, strict=True)]).sum()
        ).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        if turn != 1:
            check(world, params, given, BIG)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        moved = any((plain(p) != old).any() for p, old in zip(params, before, strict=True))
        assert moved == (turn != 1)
        assert scaler.get_scale() == (64 if turn == 0 else 32)
        optimizer.zero_grad()


def test_joined_ranks_count_as_zeros(hvd, world):
    """Rank r has r + 1 batches."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, min_size=34, bucket_bytes=300)
    for turn in range(world.rank + 1):
        everyone = [
            plain(gradients(rank, params, turn)[1]) * (turn <= rank) for rank in range(world.size)
        ]
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        np.testing.assert_allclose(
            plain(params[1].grad), np.mean(everyone, axis=0), rtol=1e-6, atol=1e-6
        )
        optimizer.zero_grad()
    last = hvd.join()
    assert last == world.size - 1
    hvd.broadcast_parameters(dict(named(params)), root_rank=last)
    given = gradients(world.rank, params, 50)
    backward(params, given)
    optimizer.step()
    check(world, params, given, BIG)
    assert same_everywhere(world, *params)


@pytest.mark.parametrize("kind", ["SignSGD", "Signum", "Lion"])
def test_an_optimizer_of_signs_does_its_own_on_means(hvd, world, kind):
    """As it would alone with that gradient; what it keeps is saved and goes on."""

    def make(ps):
        return getattr(hvd, kind)(ps, lr=0.125, weight_decay=0.5, ties="zero")

    def steps(optimizer, params, turns):
        for turn in turns:
            optimizer.zero_grad()
            backward(params, gradients(world.rank, params, turn))
            optimizer.step()

    params = parameters(*SHAPES)
    optimizer = hvd.DistributedOptimizer(make(params), named(params), min_size=34)
    alone = parameters(*SHAPES)
    lone = make([p for p, vote in zip(alone, BIG, strict=True) if not vote])
    steps(optimizer, params, range(2))
    saved = optimizer.state_dict()
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    again = hvd.DistributedOptimizer(make(resumed), named(resumed), min_size=34)
    again.load_state_dict(saved)
    steps(optimizer, params, range(2, 5))
    steps(again, resumed, range(2, 5))
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)
    planes = {name.partition("/")[2] for name in saved[KEY] if "/" in name}
    assert planes == (set() if kind == "SignSGD" else {"0", "2"})
    for turn in range(5):
        for p, g in zip(alone, gradients(world.rank, alone, turn), strict=True):
            p.grad = torch.from_numpy(np.asarray(mean(world, g, p))).to(p.dtype).reshape(p.shape)
        lone.step()
    for p, q, vote in zip(params, alone, BIG, strict=True):
        if not vote:
            np.testing.assert_allclose(plain(p), plain(q), rtol=1e-6, atol=1e-6)


def test_sparse_gradients(hvd, world):
    torch.manual_seed(0)
    model = torch.nn.Embedding(20, 8, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer = hvd.DistributedOptimizer(
        optimizer, op=hvd.MajorityVote, min_size=1000, sparse_as_dense=True
    )
    rows = torch.tensor([world.rank, 7])
    weights = drawn(world.rank, 2, 8)
    (model(rows) * weights).sum().backward()
    given = model.weight.grad.to_dense()
    optimizer.step()
    assert model.weight.grad.is_sparse
    np.testing.assert_allclose(
        plain(model.weight.grad), mean(world, given, given), rtol=1e-6, atol=1e-6
    )


@pytest.mark.ranks(2)
def test_ranks_that_choose_otherwise(hvd, world):
    params = parameters(*SHAPES)
    message = refused_alike(world, lambda: wrap(hvd, params, min_size=34 * (world.rank == 0)))
    assert "parameter 'layer.1': vote differs between ranks: False on rank 0; True on" in message
    with pytest.raises(ValueError, match="min_size: expected a number of coordinates from 0, got"):
        wrap(hvd, params, min_size=-int(world.rank == 1))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"min_size": -1}, ValueError, "min_size: expected a number of coordinates from 0, got -1"),
        ({"min_size": 2.5}, ValueError, r"min_size: .* got 2\.5"),
        ({"vote_if": "bias"}, TypeError, "vote_if: expected a function .* got 'bias'"),
        ({"vote_if": lambda n, p: None}, TypeError, "expected True or False .*'layer.0', got None"),
    ],
    ids=["negative", "half", "text", "undecided"],
)
def test_what_is_no_choice(hvd, world, options, kind, message):
    params = parameters((3,))
    with pytest.raises(kind, match=message):
        wrap(hvd, params, **options)
    with pytest.raises(TypeError, match=r"parameter 'layer\.0': 'vote': expected True or False"):
        wrap(hvd, params, torch.optim.SGD([{"params": params, "vote": 1}], lr=0.5))


def test_choices_belong_to_votes(hvd):
    params = parameters((3,))
    optimizer = torch.optim.SGD(params, lr=0.5)
    with pytest.raises(ValueError, match="vote_if, min_size: only a vote has such options"):
        hvd.DistributedOptimizer(optimizer, vote_if=lambda name, p: True, min_size=3)
