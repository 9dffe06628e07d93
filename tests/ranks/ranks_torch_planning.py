"""DistributedOptimizer by votes of nodes, by its fallback, and in buckets of planned sizes."""

from __future__ import annotations

import json

import hierarchy
import numpy as np
import pytest
import torch
from alike import refused_alike
from helpers import (
    backward,
    gradients,
    named,
    parameters,
    plain,
    same_everywhere,
    values,
)

SHAPES = ((64, 10), (10,), (), (5000,), (3, 4, 5))
CONSTANTS = {"latency": 1e-6, "bandwidth": 1e15, "pack": 1e15, "tally": 1e3, "apply": 1e15}
VOTES = {**CONSTANTS, "bandwidth": 1e3, "tally": 1e15}
DENSE = {"exchange": "auto", "fallback": "allreduce"}
WAYS = {
    "vote": {"exchange": "hierarchical", "local": "vote"},
    "mean": {"exchange": "hierarchical", "local": "mean"},
    "dense": DENSE,
}


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """measured(constants): what optimizers made from now on read from the file."""

    def write(constants: dict) -> None:
        file = tmp_path / "link.json"
        file.write_text(json.dumps({"version": 1, **constants}))
        monkeypatch.setenv("HVD_SIGN_LINK_FILE", str(file))

    return write


def wrap(hvd, params: list, **options):
    options.setdefault("named_parameters", named(params))
    return hvd.DistributedOptimizer(torch.optim.SGD(params, lr=0.5), op=hvd.MajorityVote, **options)


def of_nodes(rows: list[np.ndarray], names: list[int], local: str) -> np.ndarray:
    wanted = hierarchy.verdict(rows, names, "zero", local, name="", seed=0, step=0)
    return wanted.reshape(rows[0].shape)


@pytest.fixture
def pairs(monkeypatch, world) -> list[int]:
    """Every rank's node: two share one, so that the last of an odd number is alone."""
    names = [rank // 2 for rank in range(world.size)]
    monkeypatch.setenv("HVD_SIGN_NODE", f"pair {names[world.rank]}")
    return names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("local", ["vote", "mean"])
@pytest.mark.parametrize("bucket_bytes", [300, 25 << 20])
def test_votes_of_nodes(hvd, world, pairs, local, dtype, bucket_bytes):
    params = parameters(*SHAPES, dtype=dtype)
    options = {"exchange": "hierarchical", "local": local, "ties": "zero"}
    optimizer = wrap(hvd, params, bucket_bytes=bucket_bytes, **options)
    for turn in range(3):
        given = gradients(world.rank, params, turn)
        everyone = [world.allgather(plain(g)) for g in given]
        backward(params, given)
        optimizer.step()
        for p, rows in zip(params, everyone, strict=True):
            np.testing.assert_array_equal(plain(p.grad), of_nodes(rows, pairs, local))
        assert same_everywhere(world, *params)
        optimizer.zero_grad()


@pytest.mark.parametrize("way", WAYS)
def test_joined_ranks_go_on_serving(hvd, world, pairs, measured, way):
    """Rank r has r + 1 batches: leaders of nodes are the first to run out."""
    measured(CONSTANTS)
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, ties="zero", bucket_bytes=300, **WAYS[way])
    for turn in range(world.rank + 1):
        rows = [
            [plain(g) * (turn <= rank) for g in gradients(rank, params, turn)]
            for rank in range(world.size)
        ]
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        for p, *signals in zip(params, *rows, strict=True):
            if way == "dense":
                total = np.sum(np.array(signals, dtype=np.float64), axis=0)
                sure = np.abs(total) > 1e-5
                np.testing.assert_array_equal(plain(p.grad)[sure], np.sign(total)[sure])
            else:
                # Who has joined abstains, which is what zeros do.
                wanted = of_nodes(signals, pairs, way)
                np.testing.assert_array_equal(plain(p.grad), wanted)
        optimizer.zero_grad()
    assert hvd.join() == world.size - 1
    hvd.broadcast_parameters(dict(named(params)), root_rank=world.size - 1)
    assert same_everywhere(world, *params)
    backward(params, [torch.ones_like(p) for p in params])
    optimizer.step()
    for p in params:
        np.testing.assert_array_equal(plain(p.grad), 1)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("pairs")
def test_nonfinite_skip_is_everybodys(hvd, world, measured, way):
    measured(CONSTANTS)
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, nonfinite="skip", bucket_bytes=300, **WAYS[way])
    for turn, bad in enumerate((False, True, False)):
        given = [torch.ones_like(p) for p in params]
        if bad and world.rank == 1:
            given[3][77] = float("nan")
        before = [plain(p) for p in params]
        backward(params, given)
        optimizer.step()
        for p, old in zip(params, before, strict=True):
            np.testing.assert_allclose(plain(p), old if bad else old - 0.5, atol=1e-6)
        assert same_everywhere(world, *params), turn
        optimizer.zero_grad()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("pairs")
def test_a_scalers_scale_comes_back(hvd, measured, way):
    """The loss is scaled by 1024 on all ranks; unscaling leaves the verdict."""
    measured(CONSTANTS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, grad_scaler=scaler, **WAYS[way])
    for _ in range(2):
        scaler.scale(sum((2 * p).sum() for p in params)).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        for p in params:
            np.testing.assert_array_equal(plain(p.grad), 1)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


@pytest.mark.ranks(3)
def test_single_votes_of_nodes_in_a_process_set(hvd, world, pairs):
    everyone_but_the_first = list(range(1, world.size))
    process_set = hvd.add_process_set(everyone_but_the_first)
    part = world.Split(int(world.rank > 0), world.rank)
    if world.rank > 0:
        tensor = values(world.rank, 900)
        rows = part.allgather(plain(tensor))
        got = hvd.allreduce(
            tensor,
            op=hvd.MajorityVote,
            exchange="hierarchical",
            local="mean",
            ties="zero",
            process_set=process_set,
        )
        names = [pairs[rank] for rank in everyone_but_the_first]
        np.testing.assert_array_equal(plain(got), of_nodes(rows, names, "mean"))
    hvd.remove_process_set(process_set)
    part.Free()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fallback_sums(hvd, world, measured, dtype):
    """Gradients are small integers, whose sums are exact."""
    measured(CONSTANTS)
    params = parameters(*SHAPES, dtype=dtype)
    for scale in ("none", "mean_abs"):
        optimizer = wrap(hvd, params, bucket_bytes=4096, scale=scale, **DENSE)
        for turn in range(2):
            given = [(3 * g).round() for g in gradients(world.rank, params, turn)]
            means = [np.mean(world.allgather(plain(g)), axis=0) for g in given]
            backward(params, given)
            optimizer.step()
            for p, mean in zip(params, means, strict=True):
                wanted = mean if scale == "mean_abs" else np.sign(mean)
                np.testing.assert_allclose(plain(p.grad), wanted, rtol=8e-3, atol=1e-6)
            assert same_everywhere(world, *params)
            optimizer.zero_grad()


@pytest.mark.ranks(3)
def test_fallback_bucket_by_bucket(hvd, world, measured):
    """Messages are dear, so a small bucket is voted on, and a large one, dear to tally, summed."""
    measured({**CONSTANTS, "latency": 1e-3, "tally": 1e6})
    params = parameters((100_000,), (64,))
    optimizer = wrap(hvd, params, bucket_bytes=1, **DENSE)
    loud = -100.0 if world.rank == 0 else 1.0
    for _ in range(2):
        backward(params, [torch.full_like(p, loud) for p in params])
        optimizer.step()
        np.testing.assert_array_equal(plain(params[0].grad), -1)
        np.testing.assert_array_equal(plain(params[1].grad), 1)
        optimizer.zero_grad()


@pytest.mark.ranks(2)
def test_fallback_averages_over_the_ranks_that_have_a_gradient(hvd, world, measured):
    measured(CONSTANTS)
    params = parameters((50,), (60,))
    optimizer = wrap(hvd, params, scale="mean_abs", **DENSE)
    given = [torch.full_like(p, float(world.rank + 1)) for p in params]
    backward(params, [given[0], given[1] if world.rank == 0 else None])
    optimizer.step()
    np.testing.assert_allclose(plain(params[0].grad), (world.size + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(plain(params[1].grad), 1.0)


def votes_in_a_step(hvd, world, params: list, **options) -> tuple[int, bytes]:
    """How many buckets a step has, and its verdicts' bits."""
    optimizer = wrap(hvd, params, seed=3, **options)
    before = hvd.vote_stats().votes
    backward(params, gradients(world.rank, params))
    optimizer.step()
    verdicts = b"".join(plain(p.grad).tobytes() for p in params)
    optimizer.zero_grad()
    return hvd.vote_stats().votes - before, verdicts


def test_planned_buckets(hvd, world, measured):
    """100 tensors of 64 KiB: constants that ask for many buckets, for one, or for a measurement."""
    params = parameters(*[(16_384,)] * 100)
    _, wanted = votes_in_a_step(hvd, world, params)
    measured({**VOTES, "latency": 1e-9})
    many, verdicts = votes_in_a_step(hvd, world, params, bucket_bytes="auto")
    assert verdicts == wanted
    if world.size > 1:
        assert many == 101  # and one of which parameters have gradients
        measured({**VOTES, "latency": 1e9})
        few, verdicts = votes_in_a_step(hvd, world, params, bucket_bytes="auto")
        assert (few, verdicts) == (1, wanted)


def test_buckets_planned_by_a_measurement(hvd, world, monkeypatch, tmp_path):
    monkeypatch.setenv("HVD_SIGN_LINK_FILE", str(tmp_path / "none.json"))
    params = parameters(*[(16_384,)] * 20)
    _, wanted = votes_in_a_step(hvd, world, params)
    votes, verdicts = votes_in_a_step(hvd, world, params, bucket_bytes="auto")
    assert verdicts == wanted
    assert len(set(world.allgather(votes))) == 1


@pytest.mark.ranks(2)
def test_what_is_refused_alike(hvd, world):
    params = parameters((3,), (4,))
    last = world.rank == world.size - 1
    cases = {
        "bucket_bytes: expected a number above zero or 'auto', got 'large'": {
            "bucket_bytes": "large"
        },
        "local: expected one of 'vote', 'mean', got 'median'": {"local": "median"},
        "local: 'mean' needs exchange='hierarchical'": {"local": "mean"},
        "fallback: 'allreduce' needs exchange='auto'": {"fallback": "allreduce"},
        "fallback: expected one of 'allreduce', got 'x'": {"fallback": "x", "exchange": "auto"},
        "bucket_bytes differs between ranks": {"bucket_bytes": "auto" if last else 300},
        "groups differs between ranks": {"groups": 1 if last else 2},
    }
    for text, options in cases.items():
        message = refused_alike(world, lambda options=options: wrap(hvd, params, **options))
        assert text in message
