"""Sessions of numpy's arrays: dense tensors among voted ones, warm-up, comparisons, leaving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import seams
from additions.momentum import FusedMomentum, Momentum
from reference import verdict
from seams import SHAPES, SPECS, gradient, take_step

from hvd_sign.core.options import VoteOptions
from hvd_sign.core.training import TrainingOptions
from hvd_sign.runtime.comparing import Comparison
from hvd_sign.runtime.serving import leave_together
from hvd_sign.standalone import ranks as hvd

DENSE = (1, 3)


@pytest.fixture(scope="module", autouse=True)
def initialised(world):
    hvd.init()
    yield
    world.Barrier()
    hvd.shutdown()


def session(world, dense=DENSE, warmup_steps=0, **options):
    specs = [replace(spec, vote=spec.ordinal not in dense) for spec in SPECS]
    return hvd.ranks().world.session(
        range(world.size),
        None,
        specs,
        seams.RULE,
        VoteOptions(ties="zero", **options),
        bucket_bytes=20_000,
        training=TrainingOptions(warmup_steps=warmup_steps),
    )


def everyones(world, step):
    return [[gradient(rank, step, shape) for shape in SHAPES] for rank in range(world.size)]


def check_mean(given, ordinal, got):
    wanted = np.mean([theirs[ordinal] for theirs in given], axis=0)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("exchange", ["sharded", "allgather", "hierarchical", "auto"])
@pytest.mark.parametrize("scale", ["none", "mean_abs"])
def test_dense_among_voted(world, exchange, scale):
    votes = session(world, exchange=exchange, scale=scale)
    kinds = {tuple({spec.vote for spec in bucket.specs}) for bucket in votes.buckets}
    assert kinds == {(True,), (False,)}
    for step in range(3):
        given = everyones(world, step)
        outs, counts = take_step(votes, [g.copy() for g in given[world.rank]], step)
        assert counts
        for ordinal in DENSE:
            check_mean(given, ordinal, outs[ordinal])
        if scale == "none" and exchange != "hierarchical":
            for ordinal in {0, 2}:
                verdict([theirs[ordinal] for theirs in given], "zero").check(outs[ordinal])


@pytest.mark.parametrize("kind", [Momentum, FusedMomentum])
def test_warm_up(world, kind):
    votes = session(world, dense=(3,), warmup_steps=2, algorithm=kind(0.75))
    kept = [[np.zeros(shape, np.float32) for shape in SHAPES] for _ in range(world.size)]
    for step in range(4):
        assert votes.warming_up == (step < 2)
        given = everyones(world, step)
        outs, _ = take_step(votes, [g.copy() for g in given[world.rank]], step)
        for arrays, theirs in zip(kept, given, strict=True):
            for v, g in zip(arrays, theirs, strict=True):
                v[...] = np.float32(0.75) * v + np.float32(0.25) * g
        for ordinal in range(4):
            if step < 2 or ordinal == 3:
                check_mean(given, ordinal, outs[ordinal])
            else:
                verdict([arrays[ordinal] for arrays in kept], "zero").check(outs[ordinal])
        arrays = {name: array for name, array in votes.state().items() if "/" in name}
        assert arrays.keys() == {"v/0", "v/1", "v/2"}
        for ordinal in range(3):
            mine = kept[world.rank][ordinal].reshape(-1)
            np.testing.assert_array_equal(arrays[f"v/{ordinal}"], mine, strict=True)


class Sums:
    """Checksums as a test says."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def take(self):
        return self.numbers


def compared(world, *numbers):
    sums = Sums(*numbers)
    votes = session(world)
    transport = votes.stream.transport
    votes.comparison = Comparison(transport, 2, ["one", "another"], sums.take)
    return votes, sums


def test_the_same_is_not_spoken_of(world):
    votes, _ = compared(world, 2**64 - 1, 0)
    for step in range(3):
        take_step(votes, everyones(world, step)[world.rank], step)


@pytest.mark.ranks(2)
def test_what_differs_is_told_once_at_its_step(world):
    votes, sums = compared(world, 5, 0)
    take_step(votes, everyones(world, 0)[world.rank], 0)
    sums.numbers = (5, int(world.rank == 1))
    take_step(votes, everyones(world, 1)[world.rank], 1)
    others = (
        "rank 0" if world.size == 2 else f"ranks 0, {', '.join(map(str, range(2, world.size)))}"
    )
    sentence = (
        "check_every: ranks have diverged by step 2: the checksum of another differs between "
        f"ranks: 0x0000000000000000 on {others}; 0x0000000000000001 on rank 1; broadcast "
    )
    with pytest.raises(ValueError, match="diverged") as caught:
        take_step(votes, everyones(world, 2)[world.rank], 2)
    assert str(caught.value).startswith(sentence)
    assert votes.common_state()["step"] == 3
    sums.numbers = (5, 0)
    for step in range(3, 6):
        take_step(votes, everyones(world, step)[world.rank], step)


@pytest.mark.ranks(2)
def test_leaving_together_and_alone(world):
    votes = session(world)
    take_step(votes, everyones(world, 0)[world.rank], 0)
    leave_together(votes)
    hvd.ranks().world.end(votes)
    votes = session(world)
    take_step(votes, everyones(world, 0)[world.rank], 0)
    if world.rank == 0:
        with pytest.raises(ValueError, match="rank 0 has other parameters to exchange"):
            leave_together(votes)
    else:
        take_step(votes, everyones(world, 1)[world.rank], 1)
        with pytest.raises(RuntimeError, match="rank 0 has other parameters to exchange"):
            take_step(votes, everyones(world, 2)[world.rank], 2)
    world.Barrier()


@pytest.mark.ranks(2)
def test_ranks_agree_on_who_goes_dense(world):
    dense = DENSE if world.rank else (1,)
    with pytest.raises(
        ValueError, match="parameter 't3': vote differs between ranks: True on rank 0"
    ):
        session(world, dense=dense)
