"""Error feedback on both sides against numpy, written from the paper's lines (arXiv 2102.02888)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from additions.far import Far, FarArray
from feedback import CHUNK
from mpi4py import MPI
from onebit import World
from ranks_core_feedback import drift, given_to
from seams import RULE, SHAPES, STEPS, session, take_step

import hvd_sign
from hvd_sign.algorithms import OneBit
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.exchanges import Exchange, register
from hvd_sign.rounds import native
from hvd_sign.runtime.alone import lone_session
from hvd_sign.standalone import ranks as hvd
from hvd_sign.transports.link import Parts
from hvd_sign.votes import VoteRule


@pytest.fixture(scope="module", autouse=True)
def initialised(world):
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()


class Uneven(Exchange):
    """Rank 0 tallies one shard in two, and the others the rest."""

    name = "uneven"

    @classmethod
    def owners(cls, voters):
        return [[0], list(range(voters)), [0], [voters - 1]]

    @classmethod
    def parts(cls, link, load):
        return Parts(1.0, 1.0, 1.0)


register(Uneven)


@dataclass(frozen=True)
class Stepped(OneBit):
    """The same, but for the kernels: they compute no such step."""

    def linear(self):
        return None


def worlds(world, ties, beta):
    return [World(world.size, int(np.prod(shape)), ties, beta) for shape in SHAPES]


def check_step(world, votes, sides, everyones, turn):
    outs, counts = take_step(votes, everyones[world.rank], turn)
    assert counts
    for ordinal, shape in enumerate(SHAPES):
        wanted = sides[ordinal].step([given[ordinal] for given in everyones])
        np.testing.assert_array_equal(outs[ordinal], wanted.reshape(shape))
    check_kept(world, votes, sides)


def check_kept(world, votes, sides):
    kept = votes.state()
    for ordinal, side in enumerate(sides):
        own = side.ranks[world.rank]
        np.testing.assert_array_equal(kept.get(f"residual/{ordinal}", own.left), own.left)
        np.testing.assert_array_equal(kept.get(f"momentum/{ordinal}", own.m), own.m)
        parts = world.allgather(kept[f"verdict_residual/{ordinal}"])
        for part in parts:  # of what a rank does not tally it has zeros
            assert ((part == side.owner.left) | (part == 0)).all()
        somebodys = np.any([part != 0 for part in parts], axis=0)
        np.testing.assert_array_equal(somebodys, side.owner.left != 0)


@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
@pytest.mark.parametrize("exchange", ["sharded", "allgather", "uneven"])
@pytest.mark.parametrize("algorithm", [OneBit(), OneBit(0.9), Stepped(0.9)], ids=repr)
def test_means_and_residuals_are_those_of_the_paper(world, algorithm, exchange, ties):
    votes = session(world, algorithm=algorithm, exchange=exchange, ties=ties)
    sides = worlds(world, ties, algorithm.beta)
    for turn in range(STEPS):
        everyones = [
            given_to(rank, turn, world.size, zeros=ties != "coin") for rank in range(world.size)
        ]
        check_step(world, votes, sides, everyones, turn)


@pytest.mark.parametrize("segment_blocks", [64, 25_000])
def test_segments_skips_and_checkpoints(world, monkeypatch, segment_blocks):
    monkeypatch.setattr(native, "SEGMENT_BLOCKS", segment_blocks)
    votes = session(world, algorithm="onebit", scale="mean_abs", nonfinite="skip")
    sides = worlds(world, "coin", 0.0)
    for turn in (0, 2, 3, 4, 5):
        everyones = [given_to(rank, turn, world.size, zeros=False) for rank in range(world.size)]
        if turn == 3:
            before = votes.state()
            broken = [None if g is None else g.copy() for g in everyones[world.rank]]
            if world.rank == world.size - 1:
                broken[1][2, 69] = np.inf
            outs, counts = take_step(votes, broken, turn)
            assert not counts
            assert all((out == 7).all() for out in outs.values())
            after = votes.state()
            assert all((before[name] == after[name]).all() for name in before if name != "step")
        if turn == 4:
            state = votes.state()
            votes = session(world, algorithm="onebit", scale="mean_abs")
            votes.load_state(state)
        check_step(world, votes, sides, everyones, turn)


def test_what_is_told_and_left_is_what_came_over_a_thousand_steps(world):
    """On each rank, and at those who tally, and so altogether."""
    size = 5000
    spec = TensorSpec("t", (size,), "float32", 0)
    options = VoteOptions(algorithm=OneBit())
    votes = hvd.ranks().world.session(range(world.size), None, [spec], RULE, options)
    draw = np.random.default_rng(world.rank)
    came, went = np.zeros((2, size))
    for step in range(1000):
        g, out = draw.standard_normal(size).astype(np.float32), np.empty(size, np.float32)
        g[3000:] *= draw.random(2000) < 0.01
        votes.ready(0, Operand(HOST, g, out))
        votes.finish(lambda ordinal: pytest.fail("nothing is missing"))
        came, went = came + g, went + out
        if step % 250 == 0:
            assert len(set(world.allgather(out.tobytes()))) == 1
    kept = votes.state()
    left = world.allreduce(kept["residual/0"].astype(np.float64)) / world.size
    left += world.allreduce(kept["verdict_residual/0"].astype(np.float64))
    np.testing.assert_allclose(went + left, world.allreduce(came) / world.size, atol=4e-3)
    assert np.abs(left).mean() < 0.02 * np.abs(came).sum() / size + 20


def test_goes_by_the_mean_of_skewed_noise_and_of_different_data(world):
    def skewed(step):
        numbers = np.random.default_rng([world.rank, step])
        return np.where(numbers.random(1000) < 0.25, 4.0, -1.0)

    assert drift(world, OneBit(), skewed).mean() == pytest.approx(0.25, abs=0.03)
    own = (1.0, 2.0, -10.0)[world.rank % 3]
    mean = world.allreduce(own) / world.size

    def different(step):
        numbers = np.random.default_rng([world.rank, step]).standard_normal(1000)
        numbers[:500] = own
        return numbers

    found = drift(world, OneBit(), different)[:500]
    np.testing.assert_allclose(found, mean, atol=0.3)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("size", [7, 5000])
def test_single_votes_of_other_types_keep_residuals_by_name(world, size, dtype):
    name, side = f"x{size}{dtype}", World(world.size, size)
    for turn in range(4):
        given = [
            np.random.default_rng([rank, turn]).standard_normal(size).astype(np.float16)
            for rank in range(world.size)
        ]
        out = hvd_sign.allreduce(
            given[world.rank].astype(dtype), name=name, algorithm="onebit", comm=MPI.COMM_WORLD
        )
        assert out.dtype == dtype
        wanted = side.step([g.astype(np.float32) for g in given])
        rough = {"rtol": 2e-3, "atol": 1e-5} if dtype == "float16" else {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(out.astype(np.float64), wanted, **rough)


def test_a_chunk_that_nobody_votes_in_stays(world):
    """Of a tensor of two chunks the second has a gradient in the first step alone."""
    spec = TensorSpec("t", (2 * CHUNK,), "float32", 0)
    votes = hvd.ranks().world.session(
        range(world.size), None, [spec], RULE, VoteOptions(algorithm=OneBit())
    )
    for step in range(3):
        g = np.random.default_rng([world.rank, step]).standard_normal(2 * CHUNK).astype(np.float32)
        out = np.empty_like(g)
        if step:
            g[CHUNK:] = np.nan
            before = votes.state()["verdict_residual/0"][CHUNK:]
        votes.ready(0, Operand(HOST, g, out))
        votes.finish(lambda ordinal: pytest.fail("nothing is missing"))
        assert out[:CHUNK].all()
        assert (out[CHUNK:] == 0).all() == (step > 0)
        if step:
            np.testing.assert_array_equal(votes.state()["verdict_residual/0"][CHUNK:], before)


def test_a_world_of_one_has_both_sides(world):
    spec = TensorSpec("t", (5000,), "float32", 0)
    votes, side = lone_session([spec], VoteOptions(algorithm=OneBit(0.9))), World(1, 5000, beta=0.9)
    for step in range(3):
        g, out = np.random.default_rng(step).standard_normal(5000), np.empty(5000, np.float32)
        votes.ready(0, Operand(HOST, g.astype(np.float32), out))
        votes.finish(lambda ordinal: pytest.fail("nothing is missing"))
        np.testing.assert_array_equal(out, side.step([g.astype(np.float32)]))


def test_devices_of_planes_average_too(world):
    votes, sides = session(world, algorithm=OneBit(0.9), ties="zero"), worlds(world, "zero", 0.9)
    device = Far()
    for turn in range(STEPS):
        everyones = [given_to(rank, turn, world.size, zeros=True) for rank in range(world.size)]
        outs = [FarArray(np.full(shape, 7, np.float32)) for shape in SHAPES]
        for ordinal, g in enumerate(everyones[world.rank]):
            if g is not None:
                votes.ready(ordinal, Operand(device, FarArray(g), outs[ordinal]))
        votes.finish(lambda ordinal, outs=outs: Operand(device, None, outs[ordinal]))
        for ordinal, shape in enumerate(SHAPES):
            wanted = sides[ordinal].step([given[ordinal] for given in everyones])
            np.testing.assert_array_equal(outs[ordinal].numbers, wanted.reshape(shape))
    check_kept(world, votes, sides)


@dataclass(frozen=True, repr=False)
class Weighed(VoteRule):
    name = "Weighed"
    weighs = True

    def weights(self, state, voters):
        return [1] * voters


def test_what_does_not_go_with_means_is_refused(world):
    with pytest.raises(ValueError, match=r"op: algorithm=OneBit.*MajorityVote, got Weighed"):
        session(world, rule=Weighed(), algorithm=OneBit())
    with pytest.raises(ValueError, match=r"exchange: 'hierarchical' counts.*OneBit.*the ranks'"):
        session(world, algorithm=OneBit(), exchange="hierarchical")
    with pytest.raises(ValueError, match=r"scale: algorithm=OneBit.*'mean_abs', got 'none'"):
        session(world, algorithm=OneBit(), scale="none")
    with pytest.raises(ValueError, match=r"onebit: beta: expected a number in \[0, 1\), got 1"):
        OneBit(1)
