"""SignSGD, Signum and Lion as PyTorch's optimizers: alone, wrapped, and among others."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from additions.momentum import FusedMomentum
from helpers import backward, gradients, named, parameters, plain, same_everywhere
from reference import verdict

SHAPES = ((64, 10), (10,), (5000,), ())
KINDS = ("SignSGD", "Signum", "Lion")


@pytest.fixture(scope="module")
def by_itself(hvd, world):
    """A process set of this rank alone."""
    if world.size == 1:
        yield hvd.global_process_set
        return
    sets = [hvd.add_process_set([rank]) for rank in range(world.size)]
    yield sets[world.rank]
    for one in sets:
        hvd.remove_process_set(one)


def make(hvd, kind, params, lr=0.5, **options):
    return getattr(hvd, kind)(params, lr=lr, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"ties": "zero"}, {"scale": "mean_abs"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_alone_as_in_a_world_of_one(hvd, by_itself, world, kind, options, dtype):
    """Bit for bit, with zeros, with what is not finite, and with absent gradients."""
    alone, among = parameters(*SHAPES, dtype=dtype), parameters(*SHAPES, dtype=dtype)
    one = make(hvd, kind, alone, weight_decay=0.125, **options)
    other = make(hvd, kind, among, weight_decay=0.125, **options)
    other = hvd.DistributedOptimizer(other, named_parameters=named(among), process_set=by_itself)
    for turn in range(4):
        for optimizer, params in ((one, alone), (other, among)):
            given = gradients(world.rank, params, turn)
            given[2][100] = float("inf") if turn == 1 else 0.0
            given[1] = None if turn == 2 else given[1]
            optimizer.zero_grad()
            backward(params, given)
            optimizer.step()
        for p, q in zip(alone, among, strict=True):
            np.testing.assert_array_equal(plain(p), plain(q))
    world.Barrier()


@pytest.mark.parametrize("kind", KINDS)
def test_wrapped_it_votes_by_its_own_algorithm(hvd, world, kind):
    params = parameters(*SHAPES)
    optimizer = make(hvd, kind, params, weight_decay=0.25)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=named(params))
    kept = [[np.zeros(p.shape, np.float32) for p in params] for _ in range(world.size)]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for turn in range(3):
        before = [plain(p) for p in params]
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        lr = 0.5 * 0.5**turn
        for i, p in enumerate(params):
            signals = []
            for rank in range(world.size):
                g = gradients(rank, params, turn)[i].numpy()
                b1, b2 = {"SignSGD": (0, 0), "Signum": (0.9, 0.9), "Lion": (0.9, 0.99)}[kind]
                m = kept[rank][i]
                signals.append(np.float32(b1) * m + np.float32(1 - b1) * g)
                kept[rank][i] = np.float32(b2) * m + np.float32(1 - b2) * g
            decayed = np.float32(before[i]) * np.float32(1 - lr * 0.25)
            verdict(signals, "coin").check((np.float32(decayed) - plain(p)) / lr, rtol=1e-5)
        optimizer.zero_grad()
        scheduler.step()
    assert same_everywhere(world, *params)


def test_with_an_operation_of_horovods_the_mean_is_stepped_on(hvd, world):
    params = parameters((300,))
    optimizer = hvd.DistributedOptimizer(
        make(hvd, "Signum", params, ties="zero"), named_parameters=named(params), op=hvd.Average
    )
    before = plain(params[0])
    backward(params, gradients(world.rank, params))
    optimizer.step()
    mean = sum(plain(gradients(rank, params)[0]) for rank in range(world.size)) / world.size
    sure = np.abs(mean) > 1e-6
    moved = (before - plain(params[0])) / 0.5
    np.testing.assert_allclose(moved[sure], np.sign(mean)[sure], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_goes_on_from_what_was_saved(hvd, kind, tmp_path):
    """A state_dict, a pickle and a deep copy; element types stay as they are."""

    def turns(optimizer, params, first, last):
        for turn in range(first, last):
            optimizer.zero_grad()
            backward(params, gradients(1, params, turn))
            optimizer.step()

    params = parameters(*SHAPES, dtype=torch.bfloat16)
    optimizer = make(hvd, kind, params, weight_decay=0.1)
    turns(optimizer, params, 0, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    fresh = make(hvd, kind, resumed, lr=1.0)
    fresh.load_state_dict(torch.load(tmp_path / "state"))
    copied, of_copy = copy.deepcopy((params, optimizer))
    stored, of_stored = pickle.loads(pickle.dumps((params, optimizer)))
    for opt, ps in ((optimizer, params), (fresh, resumed), (of_copy, copied), (of_stored, stored)):
        turns(opt, ps, 3, 6)
    for other in (resumed, copied, stored):
        for p, q in zip(params, other, strict=True):
            assert torch.equal(p, q)
    kept = optimizer.state_dict()["state"][0]
    assert kept["step"] == 6
    assert set(kept) == ({"step"} if kind == "SignSGD" else {"step", "momentum"})
    if kind != "SignSGD":
        assert kept["momentum"].dtype == torch.float32
        assert kept["momentum"].shape == (64, 10)


def test_groups_closures_and_new_parameters(hvd):
    params = parameters((70,), (5,))
    optimizer = make(hvd, "Signum", [{"params": params[:1], "lr": 0.25}], lr=1.0, ties="zero")

    def closure():
        optimizer.zero_grad()
        loss = sum(p.sum() for p in optimizer.param_groups[-1]["params"])
        loss.backward()
        return loss

    before = [plain(p) for p in params]
    assert optimizer.step(closure) == before[0].astype(np.float32).sum() or True
    optimizer.add_param_group({"params": params[1:], "lr": 2.0})
    optimizer.step(closure)
    np.testing.assert_allclose(plain(params[1]), before[1] - 2.0, rtol=1e-6)
    assert optimizer.state[params[0]]["step"] == 2


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("Signum", {"lr": -1.0}, "lr: expected a finite number from 0, got -1.0"),
        ("SignSGD", {"weight_decay": float("nan")}, "weight_decay: .* got nan"),
        ("Signum", {"beta": 1.0}, r"beta: expected a number in \[0, 1\), got 1.0"),
        ("Lion", {"betas": (0.9, 2)}, "beta2: .* got 2"),
        ("Signum", {"ties": "maybe"}, "ties: expected one of"),
        ("Signum", {"scale": "big"}, "scale: expected one of"),
    ],
)
def test_what_cannot_be_is_refused(hvd, kind, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(hvd, kind)(parameters((3,)), **options)


def test_groups_share_what_is_voted_on(hvd):
    params = parameters((3,), (4,))
    groups = [{"params": params[:1]}, {"params": params[1:], "beta": 0.5}]
    with pytest.raises(ValueError, match="differ in 'lr' and 'weight_decay' alone"):
        hvd.Signum(groups)


@pytest.mark.parametrize("make_compression", ["signum", "lion"])
def test_compressors_of_any_optimizer(hvd, world, make_compression):
    """The same votes as by the algorithm's name; momentum before the vote, SGD after it."""
    results = []
    for how in ("compression", "algorithm"):
        params = parameters(*SHAPES)
        optimizer = torch.optim.SGD(params, lr=0.5, momentum=0.5)
        asked = {"algorithm": make_compression, "op": hvd.MajorityVote}
        if how == "compression":
            asked = {"compression": getattr(hvd.Compression, make_compression)()}
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=named(params), **asked)
        for turn in range(3):
            optimizer.zero_grad()
            backward(params, gradients(world.rank, params, turn))
            optimizer.step()
        results.append([plain(p) for p in params])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_compressors_that_are_no_ones_own(hvd):
    params = parameters((3,))
    optimizer = torch.optim.SGD(params, lr=0.5)
    with pytest.raises(TypeError, match=r"such as hvd.Compression.signum\(\), got .* itself"):
        hvd.DistributedOptimizer(optimizer, compression=hvd.Compression.signum)
    with pytest.raises(ValueError, match=r"signum\(beta=0.5\) has its own, got 'lion'"):
        hvd.DistributedOptimizer(
            optimizer, compression=hvd.Compression.signum(0.5), algorithm="lion"
        )


@pytest.mark.parametrize("size", [70, 30_000])
def test_single_votes_by_a_compressor_keep_momentum_by_name(hvd, world, size):
    """One of hvd_sign's own and a user's; the names' momenta are apart."""
    compressors = {
        "own": hvd.Compression.signum(0.75),
        "user": hvd.VoteCompressor(FusedMomentum(0.75)),
    }
    kept = {what: [np.zeros(size, np.float32) for _ in range(world.size)] for what in compressors}
    for turn in range(3):
        for number, (what, compression) in enumerate(compressors.items()):
            seeds = [[rank, turn, number] for rank in range(world.size)]
            given = [
                np.random.default_rng(seed).standard_normal(size, np.float32) for seed in seeds
            ]
            for v, g in zip(kept[what], given, strict=True):
                v[:] = np.float32(0.75) * v + np.float32(0.25) * g
            name, mine = f"{what} of {size}", torch.from_numpy(given[world.rank])
            out = hvd.allreduce(mine, name=name, compression=compression)
            verdict(kept[what], "coin").check(out.numpy())
    with pytest.raises(ValueError, match="keeps what belongs to a tensor under its name"):
        hvd.allreduce(torch.ones(3), compression=hvd.Compression.signum(0.75))
