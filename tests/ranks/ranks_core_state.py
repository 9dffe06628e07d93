"""What a session keeps: states that are refused whole, and what ranks have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from additions.esteem import Esteem
from additions.momentum import Momentum

from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.standalone import ranks as hvd
from hvd_sign.votes import MajorityVote

SHAPES = ((5000,), (3, 70), (64,))
SPECS = [TensorSpec(f"t{i}", shape, "float32", i) for i, shape in enumerate(SHAPES)]
HIGHEST = 7


@pytest.fixture(scope="module", autouse=True)
def initialised(world):
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()


@dataclass(frozen=True)
class TwoPlanes(Momentum):
    """Keeps what it adds to as well."""

    planes = ("v", "w")

    def step(self, gradient, state):
        signal, new = super().step(gradient, state)
        return signal, {**new, "w": state["w"] + gradient}


def session(world, rule=None, bucket_bytes=2000, **options):
    return hvd.ranks().world.session(
        range(world.size),
        None,
        SPECS,
        rule or MajorityVote(),
        VoteOptions(**options),
        bucket_bytes=bucket_bytes,
    )


def gradient(rank, step):
    numbers = np.random.default_rng([rank, step])
    return [numbers.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def begin(votes, given, count=3):
    outs = [np.zeros(shape, np.float32) for shape in SHAPES]
    for ordinal in range(count):
        votes.ready(ordinal, Operand(HOST, given[ordinal], outs[ordinal]))
    return outs


def take_step(votes, given):
    outs = begin(votes, given)
    votes.finish(lambda ordinal: pytest.fail("nothing is missing"))
    return outs


def same(state, other):
    return state.keys() == other.keys() and all(
        np.array_equal(array, other[name]) for name, array in state.items()
    )


DAMAGED = {
    "no step": (lambda s: s.pop("step"), "expected 'step'"),
    "negative step": (lambda s: s.update(step=np.array(-1)), "a whole number from 0"),
    "step of floats": (lambda s: s.update(step=np.array(1.5)), "a whole number from 0"),
    "several steps": (lambda s: s.update(step=np.array([1, 2])), "a whole number from 0"),
    "size": (lambda s: s.update({"v/2": np.zeros(63)}), "'v/2', of 't2': expected 64 numbers"),
    "a plane": (lambda s: s.pop("w/1"), r"'t1': expected all of \['v/1', 'w/1'\]"),
    "nan": (lambda s: s["w/2"].__setitem__(3, np.nan), "'w/2', of 't2': expected finite"),
    "words": (lambda s: s.update({"v/0": np.full(5000, "x")}), "'v/0', of 't0': expected numbers"),
    "foreign plane": (lambda s: s.update({"u/0": np.zeros(5000)}), r"TwoPlanes.*got 'u/0'"),
    "foreign tensor": (lambda s: s.update({"v/3": np.zeros(5)}), r"TwoPlanes.*got 'v/3'"),
    "rule's array": (lambda s: s.pop("rule/judged"), "expected 'rule/judged'"),
    "rule's size": (lambda s: s.update({"rule/agreed": np.zeros(99)}), "99"),
    "foreign rule": (lambda s: s.update({"rule/trust": np.zeros(2)}), r"Esteem.*got 'rule/trust'"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_and_foreign_states_are_refused_whole(world, what):
    votes = session(world, Esteem(HIGHEST), algorithm=TwoPlanes(0.5))
    take_step(votes, gradient(world.rank, 0))
    damaged = votes.state()
    take_step(votes, gradient(world.rank, 1))
    before = votes.state()
    damage, message = DAMAGED[what]
    damage(damaged)
    with pytest.raises(ValueError, match=message):
        votes.load_state(damaged)
    assert same(votes.state(), before)


def test_a_state_with_arrays_is_foreign_to_one_without(world):
    votes = session(world)
    with pytest.raises(ValueError, match=r"expected that of Sign\(\) and .*, got 'v/0'"):
        votes.load_state({"step": np.array(1), "v/0": np.zeros(5000, np.float32)})
    assert same(votes.state(), {"step": np.array(0)})


@pytest.mark.parametrize("algorithm", ["sign", Momentum(0.5)], ids=str)
def test_nothing_is_loaded_under_way(world, algorithm):
    votes = session(world, algorithm=algorithm)
    state = votes.state()
    begin(votes, gradient(world.rank, 0))
    with pytest.raises(AssertionError, match="between steps; a step's votes have begun"):
        votes.load_state(state)
    with pytest.raises(AssertionError, match="before votes have begun"):
        votes.take_common_state({"step": np.array(3)})
    votes.take_common_state({"step": np.array(0)})  # which it is already
    if algorithm == "sign":
        assert votes.state()["step"] == 0
    else:
        with pytest.raises(AssertionError, match="between steps"):
            votes.state()
    votes.finish(lambda ordinal: pytest.fail("nothing is missing"))
    assert votes.state()["step"] == 1


def test_what_is_common_is_taken_alone(world):
    """One rank has made the steps; all go on from them, and each keeps its own arrays."""
    votes = session(world, Esteem(HIGHEST), algorithm=Momentum(0.5))
    given = gradient(world.rank, 0)
    take_step(votes, given)
    common = {
        "step": np.array(7),
        "rule/judged": np.full(world.size, 100, np.int64),
        "rule/agreed": np.arange(world.size),
    }
    votes.take_common_state(common)
    state = votes.state()
    assert same(votes.common_state(), common)
    np.testing.assert_array_equal(state["v/0"], np.float32(0.5) * given[0])
    with pytest.raises(ValueError, match="expected 'step'"):
        votes.take_common_state({})
    assert same(votes.state(), state)


class Agreement:
    """What Esteem has learned, told by numpy from all ranks' signs."""

    def __init__(self, size):
        self.judged, self.agreed = np.zeros((2, size), np.int64)

    def weights(self):
        pairs = zip(self.judged.tolist(), self.agreed.tolist(), strict=True)
        return np.array([round(HIGHEST * (2 * a - j) / j) if j else HIGHEST for j, a in pairs])

    def vote(self, signs):
        """The weighed sums before learning from them; int64[coordinates]."""
        weighed = self.weights()[:, None] * signs
        total = weighed.sum(0)
        others = np.sign(total - weighed)
        self.judged += ((signs != 0) & (others != 0)).sum(1)
        self.agreed += ((signs != 0) & (others == signs)).sum(1)
        return total


def alike(rank, step):
    """Gradients that the ranks share up to noise, so that they come to esteem one another."""
    return [
        shared + own / np.float32(1 + rank)
        for shared, own in zip(gradient(99, step), gradient(rank, step), strict=True)
    ]


def signs_of(step, voting):
    """In {-1, 0, +1}, one row a rank, whose first so many tensors are voted on."""
    rows = []
    for rank, count in enumerate(voting):
        tensors = [g * (i < count) for i, g in enumerate(alike(rank, step))]
        rows.append(np.concatenate([np.sign(tensor).reshape(-1) for tensor in tensors]))
    return np.array(rows).astype(int)


@pytest.mark.ranks(3)
@pytest.mark.parametrize("begun", [0, 1, 2, 3], ids="{} tensors ready".format)
@pytest.mark.parametrize("nonfinite", ["abstain", "skip"])
@pytest.mark.parametrize("exchange", ["sharded", "allgather"])
def test_a_rank_that_has_joined_learns_what_the_others_do(world, exchange, nonfinite, begun):
    """The last one, whose gradients may have come when it joins: those are voted on."""
    votes = session(world, Esteem(HIGHEST), ties="zero", nonfinite=nonfinite, exchange=exchange)
    last, every = world.size - 1, len(SHAPES)
    joins, poisoned = 2, 4
    wanted = Agreement(world.size)
    totals = []
    for step in range(6):
        if step != poisoned or nonfinite != "skip":
            of_last = every if step < joins else begun if step == joins else 0
            totals.append(wanted.vote(signs_of(step, [every] * last + [of_last])))
        else:
            totals.append(np.zeros(5274))
    for step in range(6):
        given = alike(world.rank, step)
        if world.rank == last and step == joins:
            begin(votes, given, begun)
            break
        if step == poisoned and nonfinite == "skip":
            given[1][0, 0] = np.nan
        outs = take_step(votes, given)
        got = np.concatenate([out.reshape(-1) for out in outs])
        np.testing.assert_array_equal(got, np.sign(totals[step]))
    hvd.join()
    state = votes.common_state()
    assert state["step"] >= 6
    np.testing.assert_array_equal(state["rule/judged"], wanted.judged)
    np.testing.assert_array_equal(state["rule/agreed"], wanted.agreed)
    assert len(set(map(int, wanted.weights()))) > 1
