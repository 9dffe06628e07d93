"""Vote rules with weights, which may learn, and what is agreed on of them and of exchanges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from additions.esteem import Esteem
from additions.momentum import Momentum
from additions.server import Server
from seams import (
    RULE,
    SHAPES,
    gradient,
    reference_momentum,
    session,
    take_step,
)

import hvd_sign
from hvd_sign.exchanges import EXCHANGES, register
from hvd_sign.standalone import ranks as hvd
from hvd_sign.votes import VoteRule

ESTEEM_EXCHANGES = ["sharded", "allgather", "test server"]


@pytest.fixture(scope="module", autouse=True)
def initialised(world):
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()


@pytest.fixture
def server():
    yield register(Server).name
    del EXCHANGES[Server.name]


def signs_of(signal):
    """In {-1, 0, +1} as float64; 0 in blocks that are wholly zero."""
    return np.sign(signal.astype(np.float64).reshape(-1))


@pytest.mark.parametrize("algorithm", ["sign", Momentum(0.5)], ids=str)
@pytest.mark.parametrize("ties", ["coin", "zero"])
@pytest.mark.parametrize("exchange", ESTEEM_EXCHANGES)
def test_a_vote_rule(world, server, exchange, ties, algorithm):
    """The last rank inverts a gradient that the others share, up to noise: it loses its weight."""
    rule = Esteem(highest=7)
    votes = session(world, rule, exchange=exchange, ties=ties, algorithm=algorithm)
    agreement = np.zeros((2, world.size), np.int64)
    kept = [[np.zeros(shape, np.float32) for shape in SHAPES] for _ in range(world.size)]
    for step in range(3):
        common = [gradient(99, step, shape) for shape in SHAPES]
        given = [
            [
                (-1 if rank == world.size - 1 else 1) * shared
                + gradient(rank, step, shape) / np.float32(2)
                for shared, shape in zip(common, SHAPES, strict=True)
            ]
            for rank in range(world.size)
        ]
        outs, _ = take_step(votes, given[world.rank], step)
        weights = expected_weights(agreement, 7)
        for ordinal in range(len(SHAPES)):
            signals = [given[rank][ordinal] for rank in range(world.size)]
            if algorithm != "sign":
                for rank in range(world.size):
                    signals[rank], kept[rank][ordinal] = reference_momentum(
                        kept[rank][ordinal], signals[rank], 0.5
                    )
            signs = np.array([signs_of(signal) for signal in signals])
            total = weights @ signs
            verdict, decided = np.sign(total), total != 0
            got = outs[ordinal].reshape(-1)
            np.testing.assert_array_equal(got[decided], verdict[decided])
            assert (np.abs(got[~decided]) == (ties == "coin")).all()
            others = np.sign(total - weights[:, None] * signs)
            agreement[0] += (others != 0).sum(1)
            agreement[1] += ((others != 0) & (others == signs)).sum(1)
        state = votes.state()
        np.testing.assert_array_equal(state["rule/judged"], agreement[0])
        np.testing.assert_array_equal(state["rule/agreed"], agreement[1])
    if world.size > 2:
        assert expected_weights(agreement, 7)[-1] < 0 < expected_weights(agreement, 7)[0]
    again = session(world, rule, exchange=exchange, ties=ties, algorithm=algorithm)
    again.load_state(votes.state())
    signals = [[gradient(rank, 7, shape) for shape in SHAPES] for rank in range(world.size)]
    first, _ = take_step(votes, signals[world.rank], 7)
    second, _ = take_step(again, signals[world.rank], 7)
    for ordinal, out in first.items():
        np.testing.assert_array_equal(second[ordinal], out)


def expected_weights(agreement, highest):
    judged, agreed = agreement
    return np.array(
        [
            round(highest * (2 * a - j) / j) if j else highest
            for j, a in zip(judged.tolist(), agreed.tolist(), strict=True)
        ]
    )


def test_ranks_agree_on_a_rules_parameters(world):
    if world.size == 1:
        return
    with pytest.raises(ValueError, match=r"op differs .*highest=3.* on rank 0"):
        session(world, Esteem(highest=7 if world.rank else 3))


def test_a_rule_that_weighs_ranks_needs_their_own_ballots(world):
    with pytest.raises(ValueError, match="'hierarchical' counts ballots of nodes, but op=Esteem"):
        session(world, Esteem(), exchange="hierarchical")
    with pytest.raises(ValueError, match=r"op: Esteem.* learns from step to step"):
        hvd_sign.allreduce(np.ones(3, np.float32), op=Esteem())
    assert (hvd_sign.allreduce(np.ones(3, np.float32)) == 1).all()


def test_a_mean_of_gradients_is_no_algorithms_signal(world):
    with pytest.raises(
        ValueError, match=r"local: 'mean' adds up .* algorithm=Momentum\(beta=0\.5\)"
    ):
        session(world, exchange="hierarchical", local="mean", algorithm=Momentum(0.5))


@dataclass(frozen=True, repr=False)
class Given(VoteRule):
    """Weights as they come; its ``repr()`` does not tell them."""

    given: object
    name = "Given"
    weighs = True

    def weights(self, state, voters):
        return self.given() if callable(self.given) else self.given

    def __repr__(self):
        return "Given"


WRONG_WEIGHTS = [
    lambda voters: [16] * voters,
    lambda voters: [257] * voters,
    lambda voters: [1] * (voters + 1),
    lambda voters: [1.5] * voters,
    lambda voters: [float("nan")] * voters,
    lambda voters: 1,
    lambda voters: "abc",
]


@pytest.mark.parametrize("number", range(len(WRONG_WEIGHTS)))
@pytest.mark.parametrize("everywhere", [True, False])
def test_weights_that_cannot_be_counted_are_refused(world, everywhere, number):
    """On all ranks alike where one rank's are; and votes go on."""
    wrong = everywhere or world.rank == world.size - 1
    rule = Given(WRONG_WEIGHTS[number](world.size) if wrong else [1] * world.size)
    expected = (
        rf"weights\(\): expected {world.size} whole numbers, one a voter, from -15 to 15, got"
    )
    for size in (4, 40_000):
        with pytest.raises(ValueError, match=expected):
            hvd_sign.allreduce(np.ones(size, np.float32), op=rule)
    with pytest.raises(ValueError, match=expected):
        session(world, rule)
    assert (hvd_sign.allreduce(np.ones(4, np.float32), op=RULE) == 1).all()


def test_weights_and_attributes_that_differ_between_ranks(world):
    class Plain(VoteRule):
        name = "Plain"

        def __init__(self, weight):
            self.weight = weight

    if world.size == 1:
        return
    own = Given([15 * (rank == world.rank) for rank in range(world.size)])
    for rule, what in ((own, r"weights differs.*\[15, 0"), (Plain(world.rank), r"op.*weight=0")):
        with pytest.raises(ValueError, match=what):
            hvd_sign.allreduce(np.ones(4, np.float32), op=rule, exchange="allgather")
        with pytest.raises(ValueError, match=what):
            session(world, rule)


def test_rules_of_one_name_are_told_apart_by_their_weights(world):
    array = np.float32([1 if world.rank else -1])
    for first in (15, -15):
        weights = [first] + [1] * (world.size - 1)
        verdict = hvd_sign.allreduce(array, op=Given(weights))
        assert verdict.tolist() == [-1.0 if first > 0 else 1.0]


def wrong_owners(voters, rank):
    return [[], [[]], [[voters]], [[-1]], [[0, 0]], [0], [[0.0]], None, [[0]] * (rank + 1)]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("everywhere", [True, False])
def test_owners_that_are_no_table_are_refused(world, everywhere, number):
    class Wrong(Server):
        name = f"test wrong {number} {everywhere}"

        @classmethod
        def owners(cls, voters):
            wrong = everywhere or world.rank == world.size - 1
            return wrong_owners(voters, world.rank)[number] if wrong else [[0]]

    if world.size == 1:
        return
    register(Wrong)
    try:
        with pytest.raises(ValueError, match=r"owners(\(\): expected| differs)"):
            session(world, exchange=Wrong.name)
        with pytest.raises(ValueError, match=r"owners(\(\): expected| differs)"):
            hvd_sign.allreduce(np.ones(40_000, np.float32), op=RULE, exchange=Wrong.name)
    finally:
        del EXCHANGES[Wrong.name]
    assert (hvd_sign.allreduce(np.ones(4, np.float32), op=RULE) == 1).all()
