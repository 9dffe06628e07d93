"""What algorithms, rules and exchanges from outside raise on one rank, or make wrong."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
from additions.momentum import Momentum
from additions.server import Server

import hvd_sign
from hvd_sign.algorithms import Algorithm, Linear
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.training import TrainingOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.errors import DisagreementError, VoteError
from hvd_sign.exchanges import EXCHANGES, Parts, register
from hvd_sign.runtime.claims import agree_on_session
from hvd_sign.runtime.named import Tensor
from hvd_sign.standalone import ranks as hvd
from hvd_sign.votes import MajorityVote, VoteRule

SPEC = TensorSpec("t", (9000,), "float32", 0)


@pytest.fixture(scope="module", autouse=True)
def initialised(world):
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()


def session(world, rule=None, **options):
    rule = MajorityVote() if rule is None else rule
    ranks = range(world.size)
    return hvd.ranks().world.session(ranks, None, [SPEC], rule, VoteOptions(**options))


def step(votes, value=1.0):
    out = np.zeros(SPEC.shape, np.float32)
    votes.ready(0, Operand(HOST, np.full(SPEC.shape, value, np.float32), out))
    votes.finish(lambda ordinal: Operand(HOST, None, out))
    return out


@dataclass(frozen=True)
class Made(Algorithm):
    """Its step returns what it is told to."""

    what: str
    rank: int = -1  # where it does so; else all is well
    name = "made"
    planes = ("v",)

    def step(self, gradient, state):
        v = state["v"] + gradient
        here = hvd.rank() if self.rank >= 0 else self.rank
        if here != self.rank or self.what == "right":
            return gradient, {"v": v}
        if self.what == "raises":
            raise KeyError("lost")
        if self.what == "in place":
            gradient *= 2
        return {
            "one": gradient,
            "missing": (gradient, {}),
            "other": (gradient, {"v": v, "w": v}),
            "short": (gradient[:5], {"v": v}),
            "wide": (gradient.astype(np.float64), {"v": v}),
            "scalar": (np.float32(1), {"v": v}),
            "narrow": (gradient, {"v": v[:1]}),
            "list": ([gradient, {"v": v}]),
            "in place": (gradient, {"v": v}),
        }[self.what]


@pytest.mark.ranks(2)
@pytest.mark.parametrize("failing", [0, -1])
def test_what_one_ranks_step_raises_is_an_error_on_all(world, failing):
    rank = failing % world.size
    votes = session(world, algorithm=Made("raises", rank))
    with pytest.raises(KeyError if world.rank == rank else VoteError) as raised:
        step(votes)
    if world.rank != rank:
        assert str(raised.value).endswith(f"failed on rank {rank}: KeyError: 'lost'")
    assert (step(session(world)) == 1).all()


@pytest.mark.parametrize(
    "what", ["one", "missing", "other", "short", "wide", "scalar", "narrow", "list"]
)
def test_what_a_step_returns_is_checked(world, what):
    votes = session(world, algorithm=Made(what))
    with pytest.raises(ValueError, match=r"algorithm: Made\(.*step\(\): expected \(signal, new"):
        step(votes)


def test_a_step_changes_nothing_in_place(world):
    with pytest.raises(ValueError, match="read-only"):
        step(session(world, algorithm=Made("in place")))


@dataclass(frozen=True)
class Says(Algorithm):
    """Says of itself what it is told to."""

    key: str
    value: object
    name = "says"

    def __post_init__(self):
        object.__setattr__(self, self.key, self.value)

    def step(self, gradient, state):
        return gradient, dict(state)

    def linear(self):
        return getattr(self, "straight", None)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("planes", "mv", "planes: expected a tuple of identifiers, got 'mv'"),
        ("planes", ("a/b",), "planes: expected a tuple of identifiers"),
        ("planes", ("step",), "planes: expected other names than"),
        ("planes", ("residual",), "planes: expected other names than"),
        ("feedback", "yes", "feedback: expected True or False, got 'yes'"),
        ("absent", "zeros", "absent: expected 'abstain' or 'zero', got 'zeros'"),
        ("straight", (1, 2, 3), "linear.*: expected a Linear"),
        (
            "straight",
            Linear(1, float("nan"), 0, 0),
            "linear.*: expected a Linear",
        ),
        ("straight", Linear("1", 0, 0, 0), "linear.*: expected a Linear"),
        ("table", [1], "expected hyper-parameters that can be hashed"),
    ],
)
def test_what_an_algorithm_says_of_itself_is_checked(world, key, value, sentence):
    with pytest.raises(ValueError, match=f"algorithm: Says.*{sentence}"):
        session(world, algorithm=Says(key, value))
    assert (hvd_sign.allreduce(np.ones(3, np.float32)) == 1).all()


@dataclass(frozen=True)
class Negated(Algorithm):
    """Linear, and keeps nothing."""

    name = "negated"

    def step(self, gradient, state):
        return -gradient, {}

    def linear(self):
        return Linear(0, -1, 0, 0)


def test_a_linear_algorithm_may_keep_nothing(world):
    assert (step(session(world, algorithm=Negated())) == -1).all()


class Plain(Algorithm):
    """No dataclass."""

    name = "plain"

    def __init__(self, beta):
        self.beta = beta

    def step(self, gradient, state):
        return gradient, {}


@pytest.mark.ranks(2)
def test_attributes_of_what_is_no_dataclass_are_compared(world):
    with pytest.raises(DisagreementError, match=r"algorithm differs .*Plain\(beta=0\) on rank 0"):
        session(world, algorithm=Plain(min(world.rank, 1)))


@pytest.mark.ranks(2)
def test_a_rank_that_is_refused_tells_the_others(world):
    refused = {"exchange": "hierarchical", "local": "mean", "algorithm": Momentum(0.5)}
    options = {} if world.rank else refused
    with pytest.raises(ValueError, match="local: 'mean' adds up" if not world.rank else "refused"):
        session(world, **options)
    assert (step(session(world)) == 1).all()


@dataclass(frozen=True, repr=False)
class Student(VoteRule):
    """Learns what it is told to."""

    what: str = "right"
    rank: int = -1

    name = "Student"
    weighs = learns = True

    def initial(self, voters):
        return None if self.what == "nothing" else {"w": np.ones(voters, np.int64)}

    def weights(self, state, voters):
        return [int(w) for w in state["w"]]

    def learn(self, state, judged, agreed):
        if self.what == "raises" and hvd.rank() == self.rank:
            raise KeyError("forgot")
        if self.what == "other":
            return {"z": state["w"]}
        return {"w": np.array([1, *[0] * (len(judged) - 1)])}


@pytest.mark.ranks(2)
def test_what_one_ranks_rule_raises_is_an_error_on_all(world):
    votes = session(world, Student("raises", 1))
    if world.rank == 1:
        with pytest.raises(KeyError):
            step(votes)
    else:
        step(votes)
        with pytest.raises(VoteError, match="failed on rank 1: KeyError: 'forgot'"):
            step(votes)
    assert (step(session(world)) == 1).all()


def test_what_a_rule_learns_is_checked(world):
    with pytest.raises(ValueError, match=r"initial\(\): expected numpy's arrays by name, got None"):
        session(world, Student("nothing"))
    votes = session(world, Student("other"))
    with pytest.raises(ValueError, match=r"learn\(\): expected arrays by the names of initial"):
        step(votes)


def test_what_is_told_is_decided_by_majority_whatever_the_rule(world):
    """The second tensor is no gradient: rank 0, the only one with a weight, is outvoted in it."""
    other = TensorSpec("told", (64,), "float32", 7)
    ranks = range(world.size)
    votes = hvd.ranks().world.session(
        ranks, None, [SPEC, other], Student(), VoteOptions(), told=(other.ordinal,)
    )
    majority = 1.0 if world.size < 3 else -1.0
    for turn in range(2):
        out, told = np.zeros(SPEC.shape, np.float32), np.zeros(64, np.float32)
        mine = np.float32(-1.0 if world.rank else 1.0)
        votes.ready(0, Operand(HOST, np.full(SPEC.shape, mine, np.float32), out))
        votes.ready(7, Operand(HOST, np.full(64, mine, np.float32), told))
        votes.finish(lambda ordinal: Operand(HOST, None, None))
        if world.size != 2:  # two ranks tie
            assert (told == majority).all()
        if turn:  # rank 0 alone has learned to have a weight
            assert (out == 1).all()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("exchange", ["auto", "fancied"])
@pytest.mark.parametrize("differs", ["costs", "raises"])
def test_ranks_agree_on_what_a_users_exchange_plans(world, differs, exchange):
    class Fancied(Server):
        name = "fancied"

        @classmethod
        def parts(cls, link, load):
            if differs == "raises" and hvd.rank() == 1:
                raise KeyError("no constants")
            cost = 1e-9 if hvd.rank() == 0 or differs == "raises" else 1e9
            return Parts(0, cost, cost)

    error = KeyError if differs == "raises" and world.rank == 1 else DisagreementError
    key = {"auto": "exchanges", "fancied": "segments"}[exchange]
    sentence = f"planning: {key} differs" if differs == "costs" else "no constants"
    expected = pytest.raises(error, match=sentence)
    if sentence.startswith("planning: segments") and os.environ.get("HVD_SIGN_ENGINE") == "python":
        expected = nullcontext()  # Python's engine sends a bucket in one piece, whatever it costs
    register(Fancied)
    try:
        big = TensorSpec("big", (10_000_000,), "float32", 0)
        with expected:
            hvd.ranks().world.session(
                range(world.size),
                None,
                [big],
                MajorityVote(),
                VoteOptions(exchange=exchange),
                bucket_bytes="auto",
            )
    finally:
        del EXCHANGES["fancied"]
    assert (step(session(world)) == 1).all()


def test_a_round_kept_for_a_single_vote_is_of_its_element_type(world):
    """1e-200 is a zero in fp32."""

    class Copied(Plain):
        name = "copied"

    for dtype in (np.float32, np.float64):
        array = np.full(70, 1e-200 if dtype is np.float64 else 1, dtype)
        out = np.zeros_like(array)
        tensor = Tensor("t", array.shape, array.dtype.name, Operand(HOST, array, out))
        options = VoteOptions(algorithm=Copied(1), ties="zero")
        stream = hvd.ranks().stream(hvd.global_process_set)
        stream.vote([tensor], MajorityVote(), options, name=f"kept {dtype.__name__}").wait()
        assert (out == 1).all()


def test_agreement_names_what_is_refused(world):
    stream = session(world).stream
    with pytest.raises(ValueError, match="bucket_bytes: expected"):
        agree_on_session(stream, [SPEC], MajorityVote(), VoteOptions(), TrainingOptions(), -1, None)
