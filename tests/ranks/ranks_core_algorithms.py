"""The algorithms against numpy, written from their papers' lines, over all exchanges."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from mpi4py import MPI
from seams import CHUNK, SHAPES, STEPS, gradient, session, take_step

import hvd_sign
from hvd_sign.algorithms import Lion, Sign, Signum
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.runtime.alone import lone_session
from hvd_sign.standalone import ranks as hvd
from hvd_sign.votes import MajorityVote

LEAST = np.finfo(np.float32).tiny


@pytest.fixture(scope="module", autouse=True)
def initialised(world):
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()


def sign(kept, g):
    return g, kept


def signum(kept, g):
    v = np.float32(0.9) * kept + np.float32(1 - 0.9) * g
    return v, v


def lion(kept, g):
    signal = np.float32(0.9) * kept + np.float32(1 - 0.9) * g
    return signal, np.float32(0.99) * kept + np.float32(1 - 0.99) * g


ALGORITHMS = {Sign(): sign, Signum(0.9): signum, Lion(0.9, 0.99): lion}


def stepped(step, kept, g):
    """One rank's signal and what it keeps: chunks that are not finite are not voted on."""
    with np.errstate(all="ignore"):
        signal, new = (np.array(array).reshape(-1) for array in step(kept, g))
    old = kept.reshape(-1)
    if step is not sign:  # whose signal is no computed number
        signal[np.abs(signal) < LEAST] = 0
        new[np.abs(new) < LEAST] = 0
    for start in range(0, signal.size, CHUNK):
        run = slice(start, start + CHUNK)
        if not (np.isfinite(signal[run]).all() and np.isfinite(new[run]).all()):
            signal[run], new[run] = np.nan, old[run]
    return signal.reshape(g.shape), new.reshape(g.shape)


@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
@pytest.mark.parametrize("exchange", ["sharded", "allgather", "hierarchical"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_votes_are_those_of_the_paper(world, algorithm, exchange, ties):
    """With chunks that are not finite, and gradients that are absent on a rank, on all at times."""
    votes = session(world, algorithm=algorithm, exchange=exchange, ties=ties)
    kept = [[np.zeros(shape, np.float32) for shape in SHAPES] for _ in range(world.size)]
    for turn in range(STEPS):
        everyones = []
        for rank in range(world.size):
            given = [gradient(rank, turn, shape) for shape in SHAPES]
            given[0][rank::7] = 0
            given[1][:, 5:9] = 0
            if turn == 1 and rank == world.size - 1:
                given[0][5000] = np.nan
            everyones.append(
                [None if i == 3 and (turn + rank) % 3 == 0 else g for i, g in enumerate(given)]
            )
        outs, _ = take_step(votes, everyones[world.rank], turn)
        for ordinal, shape in enumerate(SHAPES):
            signals = []
            for rank, given in enumerate(everyones):
                signal = np.zeros(shape, np.float32)
                if given[ordinal] is not None:
                    step = ALGORITHMS[algorithm]
                    signal, kept[rank][ordinal] = stepped(step, kept[rank][ordinal], given[ordinal])
                signals.append(signal)
            if exchange != "hierarchical":
                reference.verdict(signals, ties).check(outs[ordinal])
            same = world.allgather(outs[ordinal].tobytes())
            assert len(set(same)) == 1
    for ordinal in range(len(SHAPES)):
        name = f"momentum/{ordinal}"
        if algorithm.planes:
            wanted = kept[world.rank][ordinal].reshape(-1)
            np.testing.assert_array_equal(votes.state()[name], wanted)


@pytest.mark.parametrize("algorithm", [Signum(0.9), Lion(0.8, 0.9)], ids=repr)
def test_a_row_that_nobody_uses_any_more_comes_to_rest(world, algorithm):
    """It goes the way of its momentum while there is some, by no coin, and then stays."""
    spec = TensorSpec("embedding", (3, 64), "float32", 0)
    options = VoteOptions(algorithm=algorithm)
    votes = hvd.ranks().world.session(range(world.size), None, [spec], MajorityVote(), options)
    steps = 1000
    moved = np.zeros(spec.shape, np.float32)
    last = np.zeros(3, int)
    for step in range(steps):
        given, out = np.zeros(spec.shape, np.float32), np.empty(spec.shape, np.float32)
        given[0] = np.random.default_rng([world.rank, step]).standard_normal(64)
        if step == 0:
            given[1] = np.where(np.arange(64) % 2, 1.0, -1.0)
        votes.ready(0, Operand(HOST, given, out))
        votes.finish(lambda ordinal: pytest.fail("nothing is missing"))
        moved += out
        last[np.abs(out).any(1)] = step
    assert last[0] == steps - 1
    assert not moved[2].any()  # never used
    signs = np.where(np.arange(64) % 2, 1.0, -1.0)
    np.testing.assert_array_equal(moved[1], signs * (last[1] + 1))
    assert 500 < last[1] < steps - 100  # momentum is 0.1 at first, and 2^-126 after 807 steps


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_a_world_of_one_needs_no_others(world, algorithm):
    """The same bits alone, without a stream, as in a session of one rank."""
    specs = [TensorSpec(f"t{i}", shape, "float32", i) for i, shape in enumerate(SHAPES)]
    options = VoteOptions(algorithm=algorithm, scale="mean_abs", seed=3)
    alone = lone_session(specs, options)
    among = hvd.ranks().world.session([world.rank], None, specs, MajorityVote(), options)
    for turn in range(STEPS):
        given = [gradient(world.rank, turn, shape) for shape in SHAPES]
        given[0][::3] = 0
        given[0][8000] = np.inf if turn == 2 else 1
        one, _ = take_step(alone, given, turn)
        other, _ = take_step(among, given, turn)
        for ordinal in one:
            np.testing.assert_array_equal(one[ordinal], other[ordinal])
    assert alone.state().keys() == among.state().keys()
    for name, array in alone.state().items():
        np.testing.assert_array_equal(array, among.state()[name])


@pytest.mark.parametrize("size", [7, 5000])
def test_single_votes_keep_what_belongs_to_a_name(world, size):
    kept = {name: [np.zeros(size, np.float32)] * world.size for name in ("a", "b")}
    for turn in range(5):
        for name in ("a", "b") if turn % 2 else ("b", "a"):
            seeds = [[rank, turn, ord(name)] for rank in range(world.size)]
            given = [
                np.random.default_rng(s).standard_normal(size).astype(np.float32) for s in seeds
            ]
            pairs = [signum(v, g) for v, g in zip(kept[name], given, strict=True)]
            kept[name] = [v for _, v in pairs]
            out = hvd_sign.allreduce(
                given[world.rank],
                name=f"{name} of {size}",
                algorithm="signum",
                comm=MPI.COMM_WORLD,
            )
            reference.verdict([signal for signal, _ in pairs], "coin").check(out)


def test_single_votes_with_state_need_a_name_and_keep_their_shape(world):
    with pytest.raises(ValueError, match=r"Signum\(beta=0.9\) keeps .* expected one, got None"):
        hvd_sign.allreduce(np.ones(3, np.float32), algorithm="signum")
    for _ in range(2):
        out = hvd_sign.allreduce(np.ones(3, np.float32), name="shaped", algorithm="signum")
        assert (out == 1).all()
        with pytest.raises(ValueError, match=r"expected Signum.* of float32\[3\] .*\[4\]"):
            hvd_sign.allreduce(np.ones(4, np.float32), name="shaped", algorithm="signum")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Signum(1.0), r"signum: beta: expected a number in \[0, 1\), got 1.0"),
        (lambda: Signum(-0.1), r"signum: beta"),
        (lambda: Signum("0.9"), r"signum: beta.*got '0.9'"),
        (lambda: Lion(0.9, float("nan")), r"lion: beta2.*got nan"),
    ],
)
def test_what_is_no_momentum_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
