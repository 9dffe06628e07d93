"""What is added in one file of its own works on several ranks, whichever engine there is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import reference
from additions.far import Far, FarArray
from additions.letters import Letters
from additions.momentum import FusedMomentum, Momentum
from additions.server import Server
from mpi4py import MPI
from seams import (
    RULE,
    SHAPES,
    SPECS,
    STEPS,
    gradient,
    reference_momentum,
    session,
    take_step,
)

import hvd_sign
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.exchanges import EXCHANGES, register
from hvd_sign.runtime.lifecycle import runtime
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign.standalone import ranks as hvd
from hvd_sign.transports.link import Parts


@pytest.fixture(scope="module", autouse=True)
def initialised(world):
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()


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
