"""What is added in one file of its own works on several ranks, whichever engine there is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import reference
from additions.esteem import Esteem
from additions.far import Far, FarArray
from additions.letters import Letters
from additions.momentum import FusedMomentum, Momentum
from additions.server import Server
from mpi4py import MPI

import hvd_sign
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.exchanges import EXCHANGES, register
from hvd_sign.runtime.lifecycle import runtime
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign.standalone import ranks as hvd
from hvd_sign.transports.link import Parts
from hvd_sign.votes import MajorityVote, VoteRule

SHAPES = ((9001,), (3, 70), (0,), (64,))
STEPS = 4
CHUNK = 4096
RULE = MajorityVote()
SPECS = [TensorSpec(f"t{i}", shape, "float32", i) for i, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module", autouse=True)
def initialised(world):
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()


def session(world, rule=RULE, **options):
    return hvd.ranks().world.session(
        range(world.size), None, SPECS, rule, VoteOptions(**options), bucket_bytes=40_000
    )


def gradient(rank, step, shape):
    return np.random.default_rng([rank, step, *shape]).standard_normal(shape).astype(np.float32)


def take_step(votes, given, step):
    """One step; returns the verdicts, and whether it counts."""
    outs = {}
    for ordinal, (shape, array) in enumerate(zip(SHAPES, given, strict=True)):
        outs[ordinal] = np.full(shape, 7, np.float32)
        if array is not None:
            votes.ready(ordinal, Operand(HOST, array, outs[ordinal]))
    counts = votes.finish(lambda ordinal: Operand(HOST, None, outs[ordinal]))
    return outs, counts


def ran_natively(votes):
    return votes.stream.transport.size == 1 or votes.stream.transport.native is not None


def reference_momentum(v, gradient, beta, unscale=1.0):
    """v in fp32, chunk by chunk: one that is not finite stays as it was, and is not voted on."""
    b, c = np.float32(beta), np.float32(1 - beta)
    with np.errstate(all="ignore"):
        new = b * v + c * (gradient * np.float32(unscale))
    signal = new.copy().reshape(-1)
    kept = new.copy().reshape(-1)
    for start in range(0, signal.size, CHUNK):
        run = slice(start, start + CHUNK)
        if not np.isfinite(signal[run]).all():
            kept[run] = v.reshape(-1)[run]
            signal[run] = np.nan
    return signal.reshape(v.shape), kept.reshape(v.shape)


@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
@pytest.mark.parametrize("exchange", ["sharded", "allgather", "hierarchical"])
@pytest.mark.parametrize("kind", [Momentum, FusedMomentum])
def test_an_algorithm_with_state(world, kind, exchange, ties):
    votes = session(world, exchange=exchange, ties=ties, algorithm=kind(0.75))
    kept = [[np.zeros(shape, np.float32) for shape in SHAPES] for _ in range(world.size)]
    for step in range(STEPS):
        given = [[gradient(rank, step, shape) for shape in SHAPES] for rank in range(world.size)]
        if step == 1:
            given[-1][0][5000] = np.nan  # of the second chunk
        if step == 2:
            given[0][1] = None
        outs, _ = take_step(votes, given[world.rank], step)
        for ordinal, shape in enumerate(SHAPES):
            signals = []
            for rank in range(world.size):
                mine = given[rank][ordinal]
                mine = np.zeros(shape, np.float32) if mine is None else mine
                signal, kept[rank][ordinal] = reference_momentum(kept[rank][ordinal], mine, 0.75)
                signals.append(signal)
            if exchange != "hierarchical":  # whose ranks here share a node, tie for tie
                reference.verdict(signals, ties).check(outs[ordinal])
        state = votes.state()
        assert state["step"] == step + 1
        for ordinal in range(len(SHAPES)):
            wanted = kept[world.rank][ordinal].reshape(-1)
            np.testing.assert_array_equal(state[f"v/{ordinal}"], wanted, strict=True)


@pytest.mark.parametrize("kind", [Momentum, FusedMomentum])
def test_steps_that_do_not_count_leave_state_alone(world, kind):
    votes = session(world, nonfinite="skip", algorithm=kind(0.5))
    good = [gradient(world.rank, 0, shape) for shape in SHAPES]
    bad = [array.copy() for array in good]
    if world.rank == world.size - 1:
        bad[1][0, 0] = np.inf
    _, counts = take_step(votes, good, 0)
    assert counts
    before = votes.state()
    outs, counts = take_step(votes, bad, 1)
    assert not counts
    assert all((out == 7).all() for out in outs.values())  # no verdict was written
    after = votes.state()
    assert after.pop("step") == before.pop("step") + 1
    assert before.keys() == after.keys() == {f"v/{i}" for i in range(len(SHAPES))}
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    take_step(votes, good, 2)
    wanted = np.float32(0.5) * before["v/0"] + np.float32(0.5) * good[0]
    np.testing.assert_array_equal(votes.state()["v/0"], wanted)


def test_state_goes_on_from_a_checkpoint(world):
    whole, first = (session(world, algorithm=Momentum(0.9)) for _ in range(2))
    steps = [[gradient(world.rank, step, shape) for shape in SHAPES] for step in range(STEPS)]
    wanted = [take_step(whole, given, step)[0] for step, given in enumerate(steps)]
    for step in (0, 1):
        take_step(first, steps[step], step)
    second = session(world, algorithm=Momentum(0.9))
    second.load_state(first.state())
    for step in (2, 3):
        outs, _ = take_step(second, steps[step], step)
        for ordinal, out in outs.items():
            np.testing.assert_array_equal(out, wanted[step][ordinal])
    for name, array in whole.state().items():
        np.testing.assert_array_equal(second.state()[name], array)


def test_ranks_agree_on_hyper_parameters(world):
    if world.size == 1:
        return
    beta = 0.9 if world.rank else 0.5
    with pytest.raises(ValueError, match=r"algorithm differs .*beta=0\.5.* on rank 0"):
        session(world, algorithm=Momentum(beta))


def test_a_joined_rank_abstains_whatever_it_keeps(world):
    votes = session(world, algorithm=Momentum(0.5))
    given = [-np.ones(shape, np.float32) * (1 + world.rank) for shape in SHAPES]
    take_step(votes, given, 0)
    before = votes.state()["v/0"].copy()
    last = world.size - 1
    if world.rank == last:
        outs, _ = take_step(votes, [np.full(shape, 9, np.float32) for shape in SHAPES], 1)
        assert (outs[0] == 1).all()  # alone: the others' momentum does not outvote it
    hvd.join()
    if world.rank != last:
        np.testing.assert_array_equal(votes.state()["v/0"], before)


@pytest.fixture
def server():
    yield register(Server).name
    del EXCHANGES[Server.name]


@pytest.mark.parametrize("scale", ["none", "mean_abs"])
@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
def test_an_exchange(world, server, ties, scale):
    votes = session(world, exchange=server, ties=ties, scale=scale)
    hvd_sign.reset_vote_stats()
    for step in range(2):
        signals = [[gradient(rank, step, shape) for shape in SHAPES] for rank in range(world.size)]
        outs, _ = take_step(votes, signals[world.rank], step)
        for ordinal, out in outs.items():
            theirs = [signal[ordinal] for signal in signals]
            if scale == "none":
                reference.verdict(theirs, ties).check(out)
            elif out.size:
                medians = sorted(float(np.abs(x).mean(dtype=np.float64)) for x in theirs)
                median = medians[(len(medians) - 1) // 2]
                reference.verdict(theirs, ties).check(out, scale=median, rtol=1e-6)
    sent = hvd_sign.vote_stats().payload_bytes
    everyones = world.allgather(sent)
    if world.size > 2:  # the server answers everyone, the others send to it alone
        assert everyones[0] == (world.size - 1) * everyones[1]


def test_the_cost_model_weighs_an_exchange(world, server):
    if world.size == 1:
        return
    votes = session(world, exchange="auto")
    votes.stream.transport.link = None
    fast = Server.parts
    Server.parts = classmethod(lambda cls, link, load: Parts(0.0, 0.0, 0.0))
    try:
        cheap = session(world, exchange="auto")
    finally:
        Server.parts = fast
    assert {vote.options.exchange for vote in cheap._rounds} == {server}
    given = [gradient(world.rank, 0, shape) for shape in SHAPES]
    outs, _ = take_step(cheap, given, 0)
    reference.verdict(world.allgather(given[0]), "coin").check(outs[0])


def test_ranks_agree_on_what_auto_chooses_from(world):
    if world.size == 1:
        return
    if world.rank == 0:
        register(Server)
    try:
        with pytest.raises(ValueError, match="exchanges differs between ranks"):
            session(world, exchange="auto")
    finally:
        EXCHANGES.pop(Server.name, None)


@pytest.mark.parametrize("exchange", ["sharded", "allgather"])
def test_a_transport(world, exchange):
    if world.size == 1:
        return
    transport = Letters(MPI.COMM_WORLD)
    stream = runtime().stream(transport, range(world.size))
    options = VoteOptions(exchange=exchange, algorithm=Momentum(0.5), scale="mean_abs")
    votes = VoteSession(stream, SPECS, RULE, options, bucket_bytes=40_000)
    native = os.environ.get("HVD_SIGN_ENGINE") != "python"
    assert (transport.native is not None) == native
    hvd_sign.reset_vote_stats()
    for step in range(3):
        signals = [gradient(rank, 0, SHAPES[0]) for rank in range(world.size)]
        given = [signals[world.rank], *(gradient(world.rank, 0, shape) for shape in SHAPES[1:])]
        outs, _ = take_step(votes, given, step)
        sizes = sorted(float(np.abs((1 - 0.5 ** (step + 1)) * x).mean()) for x in signals)
        wanted = reference.verdict(signals, "coin")
        wanted.check(outs[0], scale=sizes[(len(sizes) - 1) // 2], rtol=1e-6)
    segments = sum(vote.segments for vote in votes._rounds)
    assert transport.begun == 3 * segments * (2 if exchange == "sharded" else 1)
    assert hvd_sign.vote_stats().payload_bytes == 0  # what it sends is the transport's to count


def test_the_transport_of_the_documentation(world):
    if world.size == 1:
        return
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(next(block for block in blocks if "class Letters(" in block), names)
    stream = runtime().stream(names["Letters"](MPI.COMM_WORLD), range(world.size))
    votes = VoteSession(stream, SPECS, RULE, VoteOptions(), bucket_bytes=40_000)
    signals = [gradient(rank, 0, SHAPES[0]) for rank in range(world.size)]
    given = [signals[world.rank], *(gradient(world.rank, 0, shape) for shape in SHAPES[1:])]
    outs, _ = take_step(votes, given, 0)
    reference.verdict(signals, "coin").check(outs[0])


def test_a_transport_by_which_ranks_cannot_agree_is_refused(world):
    class Mute(Letters):
        def mailbox(self, tag=1):
            return None

    transport = Mute(MPI.COMM_WORLD)
    if world.size > 1:
        with pytest.raises(ValueError, match="Mute has neither a mailbox nor named collectives"):
            runtime().adhoc_stream(transport)


def test_an_exchange_that_a_transport_cannot_carry_is_refused(world, server):
    if world.size == 1:
        return
    stream = runtime().stream(Letters(MPI.COMM_WORLD), range(world.size))
    with pytest.raises(ValueError, match="exchange: 'test server' needs messages between pairs"):
        VoteSession(stream, SPECS, RULE, VoteOptions(exchange=server))


@pytest.mark.parametrize("scale", ["none", "mean_abs"])
@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
def test_a_device(world, ties, scale):
    """Beside ranks whose tensors the kernels pack: bits are bits, and so is what is kept."""
    far = Far()
    options = {"ties": ties, "scale": scale, "algorithm": Momentum(0.75), "seed": 5}
    here, there = session(world, **options), session(world, **options)
    for step in range(3):
        given = [gradient(world.rank, step, shape) for shape in SHAPES]
        given[1][:, :9] = 0.0
        if step == 1:
            given[0][5000] = np.inf
        wanted, _ = take_step(here, given, step)
        outs = {}
        for ordinal, (shape, array) in enumerate(zip(SHAPES, given, strict=True)):
            outs[ordinal] = np.full(shape, 7, np.float32)
            operand = Operand(HOST, array, outs[ordinal])
            if (ordinal + world.rank) % 2:
                operand = Operand(far, FarArray(array), FarArray(outs[ordinal]))
            there.ready(ordinal, operand)
        there.finish(lambda ordinal: pytest.fail("nothing is missing"))
        for ordinal, out in outs.items():
            np.testing.assert_allclose(out, wanted[ordinal], rtol=1e-6 * (scale != "none"))
        for name, array in here.state().items():
            np.testing.assert_array_equal(there.state()[name], array)


ESTEEM_EXCHANGES = ["sharded", "allgather", "test server"]


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
