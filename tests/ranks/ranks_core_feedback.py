"""Error feedback against numpy, written from the paper's lines, over all exchanges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import reference
from additions.far import Far, FarArray
from feedback import Rank, mean_abs
from mpi4py import MPI
from seams import SHAPES, SPECS, STEPS, gradient, session, take_step

import hvd_sign
from hvd_sign.algorithms import EfSign, Lion
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.rounds import native
from hvd_sign.runtime.alone import lone_session
from hvd_sign.standalone import ranks as hvd
from hvd_sign.votes import MajorityVote


@pytest.fixture(scope="module", autouse=True)
def initialised(world):
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()


@dataclass(frozen=True)
class Stepped(EfSign):
    """The same, but for the kernels: they compute no such step."""

    def linear(self):
        return None


@dataclass(frozen=True)
class Going(EfSign):
    """Goes on without a gradient."""

    absent = "zero"


@dataclass(frozen=True)
class FedLion(Lion):
    """Lion with error feedback."""

    feedback = True


def given_to(rank, turn, size, *, zeros):
    """Gradients of all kinds: with dead blocks, and a NaN and an absent one at times."""
    arrays = [gradient(rank, turn, shape) for shape in SHAPES]
    if zeros:
        arrays[0][rank::7] = 0
        arrays[1][:, 5:9] = 0
    arrays[0][128:192] *= turn % 2
    if turn == 1 and rank == size - 1:
        arrays[0][5000] = np.nan
    return [None if i == 3 and (turn + rank) % 3 == 0 else g for i, g in enumerate(arrays)]


def ranks_of(world, algorithm, ties):
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    if isinstance(algorithm, Lion):
        betas = algorithm.beta1, algorithm.beta2
    else:
        betas = (algorithm.beta,) * 2 if algorithm.beta else ()
    return [[Rank(size, ties, betas) for size in sizes] for _ in range(world.size)]


def check_step(world, votes, ranks, everyones, turn, ties, *, nodes=False, absent="abstain"):
    """One step: the verdict with its scale, and what this rank has left."""
    outs, counts = take_step(votes, everyones[world.rank], turn)
    assert counts
    if absent == "zero":
        nothing = np.zeros(SHAPES[3], np.float32)
        everyones = [[*given[:3], nothing if given[3] is None else given[3]] for given in everyones]
    for ordinal, shape in enumerate(SHAPES):
        sides = [row[ordinal] for row in ranks]
        pairs = zip(sides, everyones, strict=True)
        signals = [side.step(given[ordinal]).reshape(shape) for side, given in pairs]
        if not nodes:
            scale = reference.lower_median([float(side.sent) for side in sides])
            reference.verdict(signals, ties).check(outs[ordinal], scale)
        assert len(set(world.allgather(outs[ordinal].tobytes()))) == 1
    check_kept(votes.state(), ranks[world.rank], votes)


def check_kept(kept, sides, votes):
    for ordinal, side in enumerate(sides):
        if f"residual/{ordinal}" in kept:
            np.testing.assert_array_equal(kept[f"residual/{ordinal}"], side.e)
        if f"momentum/{ordinal}" in kept:
            np.testing.assert_array_equal(kept[f"momentum/{ordinal}"], side.m)
    assert set(votes.held()) == {name for name in kept if name.startswith("momentum")}


ALGORITHMS = [EfSign(), EfSign(0.9), Going(), FedLion(), Stepped(), Stepped(0.9)]


@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
@pytest.mark.parametrize("exchange", ["sharded", "allgather", "hierarchical"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_votes_and_residuals_are_those_of_the_paper(world, algorithm, exchange, ties):
    votes = session(world, algorithm=algorithm, exchange=exchange, ties=ties)
    assert votes.options.scale == "mean_abs"
    ranks = ranks_of(world, algorithm, ties)
    for turn in range(STEPS):
        everyones = [
            given_to(rank, turn, world.size, zeros=ties != "coin") for rank in range(world.size)
        ]
        nodes = exchange == "hierarchical"
        check_step(world, votes, ranks, everyones, turn, ties, nodes=nodes, absent=algorithm.absent)


@pytest.mark.parametrize("skips", [False, True])
def test_segments_and_one_bucket_are_the_same(world, monkeypatch, skips):
    monkeypatch.setattr(native, "SEGMENT_BLOCKS", 64)
    nonfinite = "skip" if skips else "abstain"
    votes = session(world, algorithm="ef_sign", scale="mean_abs", nonfinite=nonfinite)
    ranks = ranks_of(world, EfSign(), "coin")
    for turn in (0, 2, 3, 4):
        everyones = [given_to(rank, turn, world.size, zeros=False) for rank in range(world.size)]
        check_step(world, votes, ranks, everyones, turn, "coin")


def test_what_a_coin_casts_for_a_zero_is_what_is_left(world):
    votes = session(world, algorithm=EfSign())
    shape = (9001,)
    given = [np.ones(shape, np.float32), *(np.zeros(s, np.float32) for s in SHAPES[1:])]
    given[0][::2] = 0
    given[0][64:128] = 0
    take_step(votes, given, 0)
    left = votes.state()["residual/0"].copy()
    mean = mean_abs(given[0])
    zeros = left[::2].copy()
    assert (left[64:128] == 0).all()
    zeros[32:64] = mean
    np.testing.assert_array_equal(np.abs(zeros), np.full(4501, mean))
    assert abs(np.sign(zeros).mean()) < 2 * reference.coin_bound(4501)
    everyones = world.allgather(zeros)
    if world.size > 1:  # the coins of two neighbours cancel
        np.testing.assert_array_equal(np.delete(everyones[0] + everyones[1], range(32, 64)), 0)


def test_a_skipped_step_leaves_everything(world):
    votes = session(world, algorithm=EfSign(0.9), nonfinite="skip")
    ranks = ranks_of(world, EfSign(0.9), "coin")
    for turn in range(4):
        everyones = [given_to(rank, 2, world.size, zeros=False) for rank in range(world.size)]
        if turn % 2 == 0:
            check_step(world, votes, ranks, everyones, turn, "coin")
            continue
        if world.rank == world.size - 1:
            everyones[world.rank][1][2, 69] = np.inf
        before = votes.state()
        outs, counts = take_step(votes, everyones[world.rank], turn)
        assert not counts
        assert all((out == 7).all() for out in outs.values())
        check_kept(votes.state(), ranks[world.rank], votes)
        for name in before.keys() - {"step"}:
            np.testing.assert_array_equal(votes.state()[name], before[name])


@pytest.mark.parametrize("ties", ["coin", "zero"])
@pytest.mark.parametrize("algorithm", [EfSign(), EfSign(0.5), Stepped()], ids=repr)
def test_goes_on_from_a_checkpoint_bit_for_bit(world, algorithm, ties):
    first = session(world, algorithm=algorithm, ties=ties, nonfinite="skip")
    second = session(world, algorithm=algorithm, ties=ties)
    for turn in range(6):
        given = given_to(world.rank, turn, world.size, zeros=True)
        if turn == 1:
            given[0][5000] = 0.5
        if turn == 3:
            second.load_state(first.state())
            assert not second.held()
        one, _ = take_step(first, given, turn)
        if turn < 3:
            continue
        other, _ = take_step(second, given, turn)
        for ordinal in one:
            assert one[ordinal].tobytes() == other[ordinal].tobytes()
        kept, same = first.state(), second.state()
        assert kept.keys() == same.keys()
        for name in kept:
            np.testing.assert_array_equal(kept[name], same[name])


def test_a_world_of_one_loses_nothing_in_a_thousand_steps(world):
    """What was sent, which is then the verdict, and what is left are what came."""
    spec = TensorSpec("t", (5000,), "float32", 0)
    votes = lone_session([spec], VoteOptions(algorithm=EfSign()))
    draw = np.random.default_rng(world.rank)
    came, went = np.zeros((2, 5000))
    for _ in range(1000):
        g, out = draw.standard_normal(5000).astype(np.float32), np.empty(5000, np.float32)
        g[3000:] *= draw.random(2000) < 0.01
        votes.ready(0, Operand(HOST, g, out))
        votes.finish(lambda ordinal: pytest.fail("nothing is missing"))
        came, went = came + g, went + out
    left = votes.state()["residual/0"]
    np.testing.assert_allclose(went + left, came, atol=2e-3)


def drift(world, algorithm, draw, steps=400, size=1000):
    """The mean verdict of each coordinate over many steps."""
    spec = TensorSpec("t", (size,), "float32", 0)
    options = VoteOptions(algorithm=algorithm, scale="mean_abs")
    votes = hvd.ranks().world.session(range(world.size), None, [spec], MajorityVote(), options)
    moved = np.zeros(size)
    for step in range(steps):
        out = np.empty(size, np.float32)
        votes.ready(0, Operand(HOST, draw(step).astype(np.float32), out))
        votes.finish(lambda ordinal: pytest.fail("nothing is missing"))
        moved += out / steps
    return moved


def test_skewed_noise_goes_the_right_way(world):
    """4 with probability 1/4, else -1: the mean is 1/4, the expected sign -1/2."""

    def draw(step):
        numbers = np.random.default_rng([world.rank, step])
        return np.where(numbers.random(1000) < 0.25, 4.0, -1.0)

    assert drift(world, "sign", draw).max() < 0
    found = drift(world, EfSign(), draw).mean()
    assert found > 0.1
    if world.size in (1, 3):  # the mean, and by three ranks more than it
        assert found == pytest.approx({1: 0.25, 3: 0.37}[world.size], abs=0.01)


@pytest.mark.ranks(3)
def test_a_majority_of_different_data_is_still_no_mean(world):
    """1, 2 and -10, rank after rank: plain signs say +, and so does a majority of what each sends.

    Feedback makes each rank's own stream of signs right on average, not the majority of them. Among
    coordinates that are larger, and with noise, -10 is sent as minus more often than 1 and 2 are as
    plus, and the mean's sign comes out.
    """
    own = (1.0, 2.0, -10.0)[world.rank % 3]
    scale = reference.lower_median([(1.0, 2.0, 10.0)[rank % 3] for rank in range(world.size)])
    assert (drift(world, "sign", lambda step: np.full(64, own), 20, 64) > 0).all()
    np.testing.assert_allclose(
        drift(world, EfSign(), lambda step: np.full(64, own), 20, 64), scale, rtol=1e-6
    )

    def among_larger(step):
        numbers = np.random.default_rng([world.rank, step]).standard_normal(1000) * 40
        numbers[:100] = own + numbers[100:200] / 40
        return numbers

    plain = drift(world, "sign", among_larger)[:100].mean()
    fed_back = drift(world, EfSign(), among_larger)[:100].mean()
    assert plain > 0
    assert fed_back < -1
    if world.size == 3:
        assert plain == pytest.approx(19, abs=1)
        assert fed_back == pytest.approx(-3.4, abs=0.2)


@pytest.mark.parametrize("size", [7, 5000])
def test_single_votes_keep_residuals_by_name(world, size):
    names = f"x{size}", f"y{size}"
    kept = {name: [Rank(size, "coin") for _ in range(world.size)] for name in names}
    for turn in range(5):
        for name in names if turn % 2 else reversed(names):
            seeds = [[rank, turn, ord(name[0])] for rank in range(world.size)]
            given = [
                np.random.default_rng(s).standard_normal(size).astype(np.float32) for s in seeds
            ]
            signals = [side.step(g) for side, g in zip(kept[name], given, strict=True)]
            out = hvd_sign.allreduce(
                given[world.rank], name=name, algorithm="ef_sign", comm=MPI.COMM_WORLD
            )
            scale = reference.lower_median([float(side.sent) for side in kept[name]])
            reference.verdict(signals, "coin").check(out, scale)


def test_what_does_not_go_with_feedback_is_refused(world):
    one = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"EfSign.*keeps.*expected one, got None"):
        hvd_sign.allreduce(one, algorithm="ef_sign")
    hvd_sign.allreduce(one, algorithm="ef_sign", name="fixed")
    with pytest.raises(ValueError, match=r"with ties='coin' for 'fixed' .* ties='zero'"):
        hvd_sign.allreduce(one, algorithm="ef_sign", name="fixed", ties="zero")
    for options in ({"algorithm": EfSign(), "scale": "none"}, {"algorithm": "ef_sign"}):
        with pytest.raises(ValueError, match=r"scale: algorithm=EfSign.*'mean_abs', got 'none'"):
            session(world, **options)
    with pytest.raises(ValueError, match=r"ef_sign: beta: expected a number in \[0, 1\), got 1"):
        EfSign(1)


@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
@pytest.mark.parametrize("algorithm", [EfSign(), EfSign(0.9)], ids=repr)
def test_devices_of_planes_feed_back_too(world, algorithm, ties):
    """By their own sum of absolute values, which may round otherwise."""
    votes = session(world, algorithm=algorithm, ties=ties)
    near = session(world, algorithm=algorithm, ties=ties)
    device = Far()
    for turn in range(STEPS):
        given = given_to(world.rank, turn, world.size, zeros=True)
        outs = [FarArray(np.full(shape, 7, np.float32)) for shape in SHAPES]
        for ordinal, g in enumerate(given):
            if g is not None:
                votes.ready(ordinal, Operand(device, FarArray(g), outs[ordinal]))
        votes.finish(lambda ordinal, outs=outs: Operand(device, None, outs[ordinal]))
        ours, _ = take_step(near, given, turn)
        for ordinal, out in ours.items():
            np.testing.assert_allclose(outs[ordinal].numbers, out, rtol=1e-5)
        kept, wanted = votes.state(), near.state()
        assert kept.keys() == wanted.keys()
        for name in kept:
            np.testing.assert_allclose(kept[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert {f"residual/{spec.ordinal}" for spec in SPECS} <= kept.keys()
