"""DistributedOptimizer by majority vote: what it leaves in p.grad, and Horovod's own manners."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from alike import refused_alike
from helpers import (
    EXCHANGES,
    TIES,
    backward,
    expected,
    gradients,
    named,
    parameters,
    plain,
    same_everywhere,
)

SHAPES = ((64, 10), (10,), (), (5000,), (3, 4, 5))


def wrap(hvd, params: list, lr: float = 0.5, **options):
    options.setdefault("op", hvd.MajorityVote)
    options.setdefault("named_parameters", named(params))
    return hvd.DistributedOptimizer(torch.optim.SGD(params, lr=lr), **options)


def train(hvd, world, params: list, optimizer, turn: int = 0, ties: str = "coin") -> list:
    """One step; checks the verdicts, the parameters, and that ranks agree. Returns the verdicts."""
    given = gradients(world.rank, params, turn)
    wanted = [expected(world, g, ties) for g in given]
    before = [plain(p) for p in params]
    backward(params, given)
    optimizer.step()
    lr = optimizer.param_groups[0]["lr"]
    for p, want, old in zip(params, wanted, before, strict=True):
        want.check(plain(p.grad))
        np.testing.assert_allclose(plain(p), old - lr * plain(p.grad), rtol=1e-6, atol=1e-6)
    assert same_everywhere(world, *params, *[p.grad for p in params])
    verdicts = [plain(p.grad) for p in params]
    optimizer.zero_grad()
    return verdicts


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("ties", TIES)
def test_verdict_of_the_gathered_gradients(hvd, world, ties, exchange):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, ties=ties, exchange=exchange)
    for turn in range(3):
        train(hvd, world, params, optimizer, turn, ties)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_buffers_are_made_once(hvd, world, exchange):
    """The core's buffers are numpy's and Python's; a ballot has 125 kB here."""
    params = [torch.nn.Parameter(torch.zeros(1_000_000))]
    optimizer = wrap(hvd, params, exchange=exchange)

    def step() -> None:
        params[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(3):
            step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 60_000


@pytest.mark.parametrize("how", ["compression", "op", "both", "both by default op"])
def test_either_argument_asks_for_a_vote(hvd, world, how):
    params = parameters(*SHAPES)
    options = {"named_parameters": named(params)}
    if how != "op":
        options["compression"] = hvd.Compression.sign
    if how in ("op", "both"):
        options["op"] = hvd.MajorityVote
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(params, lr=0.5), **options)
    train(hvd, world, params, optimizer)


def test_unnamed_parameters(hvd, world):
    params = parameters(*SHAPES)
    train(hvd, world, params, wrap(hvd, params, named_parameters=None))


def test_sign_with_another_op_is_refused(hvd, world):
    params = parameters((3,))
    for op in (hvd.Sum, hvd.Average, hvd.Max):
        message = refused_alike(
            world, lambda op=op: wrap(hvd, params, compression=hvd.Compression.sign, op=op)
        )
        assert "MajorityVote" in message


def test_without_a_vote_it_is_horovods(hvd, world):
    for options in ({}, {"op": hvd.Sum}, {"compression": hvd.Compression.fp16}):
        params = parameters((40,), (3, 5))
        votes = hvd.vote_stats().votes
        inner = torch.optim.SGD(params, lr=0.5)
        optimizer = hvd.DistributedOptimizer(inner, named_parameters=named(params), **options)
        given = gradients(world.rank, params)
        backward(params, given)
        optimizer.step()
        for p, g in zip(params, given, strict=True):
            total = sum(world.allgather(plain(g)))
            reduced = total if "op" in options else total / world.size
            np.testing.assert_allclose(plain(p.grad), reduced, atol=0.02)
        assert hvd.vote_stats().votes == votes


@pytest.mark.parametrize("passes", [2, 3])
def test_backward_passes_per_step(hvd, world, passes):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, backward_passes_per_step=passes)
    for turn in range(2):
        rounds = [gradients(world.rank, params, 10 * turn + i) for i in range(passes)]
        for given in rounds:
            backward(params, given)
        local = []
        for parts in zip(*rounds, strict=True):  # one after another, as autograd adds them
            local.append(parts[0].clone())
            for part in parts[1:]:
                local[-1] += part
        wanted = [expected(world, g) for g in local]
        optimizer.step()
        for p, want in zip(params, wanted, strict=True):
            want.check(plain(p.grad))
        assert same_everywhere(world, *params)
        optimizer.zero_grad()


@pytest.mark.parametrize("groups", [1, 2, 4, "list", "num_groups"])
def test_groups(hvd, world, groups):
    params = parameters(*SHAPES)
    if groups == "num_groups":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            optimizer = wrap(hvd, params, num_groups=2)
    else:
        lists = [[params[0], params[3]], [params[2], params[1]]]
        optimizer = wrap(hvd, params, groups=lists if groups == "list" else groups)
    for turn in range(2):
        train(hvd, world, params, optimizer, turn)


def test_wrong_groups_are_refused(hvd, world):
    params = parameters((3,), (4,))
    twice = [[params[0]], [params[0], params[1]]]
    for groups in (-1, twice, [["layer.0"]]):
        refused_alike(world, lambda groups=groups: wrap(hvd, params, groups=groups))


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_gradient_predivide_factor_changes_no_sign(hvd, world, factor):
    params = parameters(*SHAPES)
    train(hvd, world, params, wrap(hvd, params, gradient_predivide_factor=factor))


def test_wrong_arguments_are_refused(hvd, world):
    params = parameters((3,), (4,))
    cases = {
        "backward_passes_per_step": {"backward_passes_per_step": 0},
        "unique": {"named_parameters": [("same", params[0]), ("same", params[1])]},
        "tuples": {"named_parameters": params},
        "not named": {"named_parameters": named(params)[:1]},
        "ties": {"ties": "toss"},
        "exchange": {"exchange": "carrier"},
        "scale": {"scale": "max"},
        "nonfinite": {"nonfinite": "ignore"},
        "bucket_bytes": {"bucket_bytes": -1},
        "seed": {"seed": "x"},
    }
    for text, options in cases.items():
        message = refused_alike(world, lambda options=options: wrap(hvd, params, **options))
        assert text in message


def test_bucket_sizes_exchanges_and_groups_give_equal_bits(hvd, world):
    """Coins too: they belong to the coordinate, not to the bucket it travels in."""
    variants = [{"bucket_bytes": size} for size in (1, 300, 4096, 20_000, 25 << 20)]
    variants += [{"exchange": exchange} for exchange in EXCHANGES]
    variants += [{"groups": 2}, {"groups": 5}]
    for ties in TIES:
        results = set()
        for options in variants:
            params = parameters(*SHAPES)
            optimizer = wrap(hvd, params, ties=ties, seed=3, **options)
            verdicts = [train(hvd, world, params, optimizer, turn, ties) for turn in range(2)]
            results.add(b"".join(v.tobytes() for turn in verdicts for v in turn))
        assert len(results) == 1


@pytest.mark.ranks(2, 2)
def test_seed_decides_the_coins(hvd, world):
    def verdict(seed: int) -> np.ndarray:
        params = parameters((20_000,))
        optimizer = wrap(hvd, params, seed=seed)
        backward(params, [torch.full((20_000,), 1.0 if world.rank else -1.0)])
        optimizer.step()
        return plain(params[0].grad)

    first, again, other = verdict(1), verdict(1), verdict(2)
    np.testing.assert_array_equal(first, again)
    assert abs((first * other).mean()) < 0.04
    assert abs(first.mean()) < 0.04


@pytest.mark.parametrize(
    ("width", "ties"), [(10, "zero"), (70, "zero"), (64, "coin"), (128, "coin")]
)
def test_a_padding_row_keeps_still(hvd, world, width, ties):
    table = torch.nn.Embedding(12, width, padding_idx=3)
    optimizer = wrap(hvd, list(table.parameters()), named_parameters=None, ties=ties)
    for step in range(3):
        table(torch.tensor([2, 3, 4, 3, (step + world.rank) % 12])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    np.testing.assert_array_equal(plain(table.weight)[3], 0)


def test_synchronize_then_skip_synchronize(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    for turn in range(2):
        given = gradients(world.rank, params, turn)
        wanted = [expected(world, g) for g in given]
        before = [plain(p) for p in params]
        backward(params, given)
        optimizer.synchronize()
        for p, want in zip(params, wanted, strict=True):
            want.check(plain(p.grad))
            p.grad.mul_(0.25)  # as clipping would
        votes = hvd.vote_stats().votes
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with optimizer.skip_synchronize():
                optimizer.step()
        assert hvd.vote_stats().votes == votes
        for p, old in zip(params, before, strict=True):
            np.testing.assert_allclose(np.abs(plain(p) - old).max(), 0.125, rtol=1e-4)
        assert same_everywhere(world, *params)
        optimizer.zero_grad()


@pytest.mark.ranks(2)
def test_step_after_synchronize_warns(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    backward(params, gradients(world.rank, params))
    optimizer.synchronize()
    verdicts = [plain(p.grad) for p in params]
    with pytest.warns(UserWarning, match="skip_synchronize"):
        optimizer.step()
    for p, verdict in zip(params, verdicts, strict=True):
        np.testing.assert_array_equal(plain(p.grad)[verdict != 0], verdict[verdict != 0])
    assert same_everywhere(world, *params)


@pytest.mark.ranks(2)
def test_zero_grad_between_backward_and_step_is_an_error(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    backward(params, gradients(world.rank, params))
    with pytest.raises(AssertionError, match="zero_grad"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad()
    train(hvd, world, params, optimizer, 1)


@pytest.mark.ranks(2)
def test_more_backward_passes_than_promised_is_an_error(hvd, world):
    params = parameters((100,))
    optimizer = wrap(hvd, params)
    backward(params, gradients(world.rank, params))
    with pytest.raises(AssertionError, match="backward_passes_per_step"):
        backward(params, gradients(world.rank, params, 1))
    # The second pass was added to gradients that are being voted on: only to be thrown away.
    with pytest.raises(RuntimeError, match=r"p\.grad of 'layer\.0' was changed"):
        optimizer.synchronize()
    optimizer.zero_grad()
    train(hvd, world, params, optimizer, 2)


def test_set_backward_passes_per_step(hvd, world):
    params = parameters((100,))
    optimizer = wrap(hvd, params)
    optimizer.set_backward_passes_per_step(2)
    backward(params, gradients(world.rank, params))
    backward(params, gradients(world.rank, params, 1))
    optimizer.step()
    assert same_everywhere(world, *params)


def test_closure(hvd, world):
    """The loss comes back, and the closure's gradients are what is voted on."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    given = gradients(world.rank, params)
    wanted = [expected(world, g) for g in given]

    def closure() -> float:
        optimizer.zero_grad()
        backward(params, given)
        return 1.5

    assert optimizer.step(closure) == 1.5
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))
    assert same_everywhere(world, *params)


def test_step_without_any_backward(hvd, world):
    params = parameters((100,), ())
    optimizer = wrap(hvd, params)
    before = [plain(p) for p in params]
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)
    train(hvd, world, params, optimizer)


def test_only_one_gradient_in_a_large_step(hvd, world):
    """A rank's backward may take its parameters in any order."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, bucket_bytes=300)
    given = gradients(world.rank, params)
    wanted = [expected(world, g) for g in given]
    order = np.random.default_rng(world.rank).permutation(len(params))
    for i in order:
        backward([params[i]], [given[i]])
    optimizer.step()
    for p, want in zip(params, wanted, strict=True):
        want.check(plain(p.grad))
    assert same_everywhere(world, *params)


def test_statistics(hvd, world):
    params = parameters((100_000,))
    optimizer = wrap(hvd, params)
    before = hvd.vote_stats()
    train(hvd, world, params, optimizer)
    after = hvd.vote_stats()
    assert after.votes > before.votes
    sent = after.payload_bytes - before.payload_bytes
    ideal = 2 * (world.size - 1) / world.size * 100_000 / 8
    assert 0.9 * ideal <= sent <= 1.1 * ideal
    assert set(after.asdict()) >= {"votes", "payload_bytes"}
