"""Ranks compare what they have in common, and all of them say who differs, and in what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from additions.esteem import Esteem
from alike import refused_alike
from helpers import DTYPES, backward, gradients, named, parameters, plain, same_everywhere

SHAPES = ((64, 10), (10,), (3, 5), ())


def wrap(hvd, params: list, **options):
    optimizer = torch.optim.SGD(params, lr=0.5)
    options = {"op": hvd.MajorityVote, "check_every": 2, **options}
    return hvd.DistributedOptimizer(optimizer, named_parameters=named(params), **options)


def step(world, optimizer, params: list, turn: int) -> None:
    optimizer.zero_grad()
    backward(params, gradients(world.rank, params, turn))
    optimizer.step()


@pytest.mark.parametrize("exchange", ["sharded", "hierarchical"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_differs(hvd, world, dtype, exchange):
    params = parameters(*SHAPES, (0,), dtype=dtype)
    params[2].requires_grad_(False)
    live = [p for p in params if p.requires_grad]
    optimizer = wrap(hvd, params, exchange=exchange, op=hvd.MajorityVote, min_size=11)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for turn in range(5):
        step(world, optimizer, live, turn)
        schedule.step()
    assert same_everywhere(world, *params)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("place", range(4))
def test_one_coordinate_of_one_rank(hvd, world, place):
    """Seen at the next check, told alike, and mended by a broadcast: training then goes on."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    step(world, optimizer, params, 0)
    if world.rank == 1:
        with torch.no_grad():
            params[place].view(-1)[-1] += 2.0**-20
    step(world, optimizer, params, 1)
    message = refused_alike(world, lambda: step(world, optimizer, params, 2))
    assert f"by step 2: the checksum of parameter 'layer.{place}' differs" in message
    alike = [str(rank) for rank in range(world.size) if rank != 1]
    others = "rank 0" if world.size == 2 else f"ranks {', '.join(alike)}"
    assert f" on {others}; " in message
    assert " on rank 1; broadcast" in message
    hvd.broadcast_parameters(dict(named(params)), root_rank=0)
    for turn in range(3, 6):
        step(world, optimizer, params, turn)
    assert same_everywhere(world, *params)


@pytest.mark.ranks(2)
def test_nobody_has_broadcast(hvd, world):
    """Said at the first step, before anything is learned on such parameters."""
    params = parameters(*SHAPES)
    with torch.no_grad():
        params[1] += world.rank
        params[2] += world.rank
    optimizer = wrap(hvd, params, check_every=1000)
    before = [plain(p) for p in params]
    message = refused_alike(world, lambda: step(world, optimizer, params, 0))
    assert "by step 0: the checksum of parameter 'layer.1' (1 more differ) differs" in message
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("what", ["rate", "frozen", "swapped"])
def test_what_else_differs(hvd, world, what):
    params = parameters(*SHAPES)
    params[3].requires_grad_(False)
    live = params[:3]
    optimizer = wrap(hvd, params, check_every=1)
    step(world, optimizer, live, 0)
    if world.rank == world.size - 1:
        with torch.no_grad():
            if what == "rate":
                optimizer.param_groups[0]["lr"] = 0.25
            elif what == "frozen":
                params[3] += 1
            else:
                params[0][[3, 4]] = params[0][[4, 3]]
    wanted = {
        "rate": "the options of parameter groups",
        "frozen": "frozen parameters",
        "swapped": "parameter 'layer.0'",
    }[what]
    message = refused_alike(world, lambda: step(world, optimizer, live, 1))
    assert f"by step 1: the checksum of {wanted}" in message


def test_what_a_rule_has_learned_is_compared(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, op=Esteem())
    for turn in range(3):
        step(world, optimizer, params, turn)
    state = optimizer.state_dict()
    if world.rank == 0:
        state["hvd_sign"]["rule/judged"] = state["hvd_sign"]["rule/judged"] + 1
    optimizer.load_state_dict(state)
    steps = [lambda turn=turn: step(world, optimizer, params, turn) for turn in (3, 4)]
    if world.size == 1:
        for once in steps:
            once()
    else:
        message = refused_alike(world, lambda: [once() for once in steps])
        assert "the checksum of what the votes go on from" in message


@pytest.mark.parametrize("check_every", [1, 2])
def test_joined_ranks_are_left_out(hvd, world, check_every):
    """Rank r has r + 1 batches; what joined ranks have is out of date."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, check_every=check_every, bucket_bytes=300)
    for turn in range(world.rank + 1):
        step(world, optimizer, params, turn)
    hvd.broadcast_parameters(dict(named(params)), root_rank=hvd.join())
    for turn in range(3):
        step(world, optimizer, params, turn)
    assert same_everywhere(world, *params)


def test_skipped_steps_and_passes(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, check_every=1, nonfinite="skip", backward_passes_per_step=2)
    for turn in range(4):
        for half in range(2):
            given = gradients(world.rank, params, 2 * turn + half)
            if turn == 1 and world.rank == 0:
                given[0][0, 0] = float("inf")
            backward(params, given)
        optimizer.step()
        optimizer.zero_grad()
    assert same_everywhere(world, *params)


@pytest.mark.ranks(2)
def test_ranks_that_check_otherwise(hvd, world):
    params = parameters((3,))
    message = refused_alike(world, lambda: wrap(hvd, params, check_every=5 + world.rank))
    assert "check_every differs between ranks: 5 on rank 0; 6 on rank 1" in message


def test_what_is_no_number_of_steps(hvd):
    params = parameters((3,))
    for bad in (-1, 2.5, True, "ten"):
        with pytest.raises(ValueError, match="check_every: expected a whole number of steps"):
            wrap(hvd, params, check_every=bad)
    with pytest.raises(ValueError, match="check_every: only a vote has such options"):
        wrap(hvd, params, op=hvd.Average)
