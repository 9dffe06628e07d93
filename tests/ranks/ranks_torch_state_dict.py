"""What a vote keeps from step to step: in ``state_dict()``, and broadcast."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from additions.esteem import Esteem
from additions.momentum import FusedMomentum, Momentum
from helpers import backward, gradients, named, parameters, plain, same_everywhere

SHAPES = ((64, 10), (10,), (5000,))
KEY = "hvd_sign"


def wrap(hvd, params: list, **options):
    optimizer = torch.optim.SGD(params, lr=0.5, momentum=0.9)
    options.setdefault("op", hvd.MajorityVote)
    return hvd.DistributedOptimizer(optimizer, named_parameters=named(params), **options)


def steps(world, params: list, optimizer, turns) -> None:
    for turn in turns:
        backward(params, gradients(world.rank, params, turn))
        optimizer.step()
        optimizer.zero_grad()


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def momentum(world, params: list, beta: float, turns) -> list[np.ndarray]:
    """This rank's, in fp32, from gradients whose zeros are zeros."""
    v = [np.zeros(p.numel(), np.float32) for p in params]
    for turn in turns:
        for kept, given in zip(v, gradients(world.rank, params, turn), strict=True):
            g = given.numpy().reshape(-1)
            kept[:] = np.float32(beta) * kept + np.float32(1 - beta) * g
    return v


@pytest.mark.parametrize("algorithm", ["sign", Momentum(0.9), FusedMomentum(0.9)], ids=str)
def test_a_resumed_run_equals_the_uninterrupted_one(hvd, world, algorithm):
    """Bit for bit: also where coins decide, which fall by the number of steps."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, algorithm=algorithm)
    steps(world, params, optimizer, range(3))
    state, saved = through_a_file([optimizer.state_dict(), [p.detach() for p in params]])
    steps(world, params, optimizer, range(3, 6))
    restored = [torch.nn.Parameter(p.clone()) for p in saved]
    other = wrap(hvd, restored, algorithm=algorithm)
    steps(world, restored, other, range(1))  # has been somewhere else
    with torch.no_grad():
        for p, q in zip(restored, saved, strict=True):
            p.copy_(q)
    other.load_state_dict(copy.deepcopy(state))
    steps(world, restored, other, range(3, 6))
    for p, q in zip(params, restored, strict=True):
        np.testing.assert_array_equal(plain(p), plain(q))
    mine, theirs = optimizer.state_dict()[KEY], other.state_dict()[KEY]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_coins_fall_by_the_number_of_steps(hvd, world):
    params = parameters((640,))
    optimizer = wrap(hvd, params)
    one_in_ten = torch.zeros(640)
    one_in_ten[::10] = 1.0  # the zeros beside them are coins'
    verdicts = []
    for step in (4, 5, 4):
        optimizer.load_state_dict({**optimizer.state_dict(), KEY: {"step": torch.tensor(step)}})
        backward(params, [one_in_ten])
        optimizer.step()
        verdicts.append(plain(params[0].grad))
        optimizer.zero_grad()
    np.testing.assert_array_equal(verdicts[0], verdicts[2])
    assert not np.array_equal(verdicts[0], verdicts[1])


def test_what_is_in_it(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    assert through_a_file(optimizer.state_dict())[KEY] == {"step": torch.tensor(0)}
    steps(world, params, optimizer, range(2))
    assert optimizer.state_dict()[KEY] == {"step": torch.tensor(2)}
    optimizer = wrap(hvd, params, algorithm=Momentum(0.75), op=Esteem(7))
    steps(world, params, optimizer, range(2))
    kept = through_a_file(optimizer.state_dict())[KEY]
    names = ["v/0", "v/1", "v/2"]
    assert sorted(kept) == ["rule/agreed", "rule/judged", "step", *names]
    for name, wanted in zip(names, momentum(world, params, 0.75, range(2)), strict=True):
        np.testing.assert_array_equal(kept[name].numpy(), wanted, strict=True)
    shared = [tensor for name, tensor in sorted(kept.items()) if name not in names]
    assert same_everywhere(world, *shared)
    snapshot = kept["v/0"].clone()
    steps(world, params, optimizer, [2])
    assert torch.equal(kept["v/0"], snapshot)  # it is a copy


def test_plain_optimizers_and_wrapped_ones_load_each_others(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, algorithm=Momentum(0.5))
    steps(world, params, optimizer, range(2))
    state = optimizer.state_dict()
    bare = torch.optim.SGD(parameters(*SHAPES), lr=0.1, momentum=0.9)
    bare.load_state_dict(state)
    assert bare.state_dict().keys() == {"state", "param_groups"}
    assert bare.param_groups[0]["lr"] == 0.5
    bare.param_groups[0]["lr"] = 0.25
    kept = copy.deepcopy(state[KEY])
    optimizer.load_state_dict(bare.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.25
    after = optimizer.state_dict()[KEY]
    assert after.keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in after.items())
    optimizer._wrapped.load_state_dict(state)  # the one that is wrapped, by itself
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_pytorchs_hooks_work(hvd, world):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    seen = []

    def add(which, state):
        seen.append("saved")
        return {**state, "epoch": 3}

    def change(which, state):
        seen.append(sorted(state))
        return {**state, "param_groups": [{**state["param_groups"][0], "lr": 0.125}]}

    optimizer.register_state_dict_pre_hook(lambda which: seen.append("saving"))
    optimizer.register_state_dict_post_hook(add)
    optimizer.register_load_state_dict_pre_hook(change)
    optimizer.register_load_state_dict_post_hook(lambda which: seen.append("loaded"))
    steps(world, params, optimizer, range(1))
    state = optimizer.state_dict()
    assert state["epoch"] == 3
    assert state[KEY] == {"step": torch.tensor(1)}
    steps(world, params, optimizer, range(1))
    optimizer.load_state_dict(state)
    assert seen == ["saving", "saved", ["epoch", KEY, "param_groups", "state"], "loaded"]
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert optimizer.state_dict()[KEY] == {"step": torch.tensor(1)}


@pytest.mark.parametrize("passes", [1, 2])
def test_loading_under_way_is_refused(hvd, world, passes):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, backward_passes_per_step=passes, algorithm=Momentum(0.5))
    state = optimizer.state_dict()
    backward(params, gradients(world.rank, params))
    with pytest.raises(AssertionError, match=r"load_state_dict\(\) was called after loss.backward"):
        optimizer.load_state_dict(state)
    if passes == 1:
        with pytest.raises(AssertionError, match="state: expected to be asked between steps"):
            optimizer.state_dict()
    optimizer.step()
    optimizer.load_state_dict(state)
    assert optimizer.state_dict()[KEY] == {"step": torch.tensor(0)}


DAMAGED = {
    "step": lambda kept: kept.pop("step"),
    "size": lambda kept: kept.update({"v/1": torch.zeros(11)}),
    "foreign": lambda kept: kept.update({"u/1": torch.zeros(10)}),
    "number": lambda kept: kept.update(step=3),
    "name": lambda kept: kept.update({3: torch.zeros(3)}),
    "complex": lambda kept: kept.update({"v/1": torch.zeros(10, dtype=torch.complex64)}),
    "nan": lambda kept: kept["v/2"].fill_(float("nan")),
}


@pytest.mark.parametrize("what", [*DAMAGED, "no dictionary", "optimizer's part"])
def test_what_is_damaged_is_never_half_loaded(hvd, world, what):
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, algorithm=Momentum(0.5))
    steps(world, params, optimizer, range(1))
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["param_groups"][0]["lr"] = 7.0
    steps(world, params, optimizer, range(1, 2))
    before = copy.deepcopy(optimizer.state_dict())
    if what in DAMAGED:
        DAMAGED[what](damaged[KEY])
    elif what == "no dictionary":
        damaged[KEY] = torch.zeros(3)
    else:
        damaged["param_groups"][0]["params"].pop()
    with pytest.raises(ValueError, match="state"):
        optimizer.load_state_dict(damaged)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for part in (KEY, 0, 1, 2):
        mine = after[part] if part == KEY else after["state"][part]
        theirs = before[part] if part == KEY else before["state"][part]
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_bfloat16_arrays_are_taken(hvd, world):
    """Of a checkpoint that was made smaller."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, algorithm=Momentum(0.5))
    steps(world, params, optimizer, range(1))
    state = optimizer.state_dict()
    small = {name: t.bfloat16() if t.dim() else t for name, t in state[KEY].items()}
    optimizer.load_state_dict({**state, KEY: small})
    kept = optimizer.state_dict()[KEY]
    assert all(torch.equal(kept[f"v/{i}"], small[f"v/{i}"].float()) for i in range(3))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("root", [0, -1])
def test_the_root_alone_loads_and_broadcasts(hvd, world, root):
    """Steps and esteem are the root's on all ranks; momentum stays each rank's own."""
    root %= world.size
    options = {"algorithm": Momentum(0.5), "op": Esteem(7)}
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params, **options)
    steps(world, params, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    again = parameters(*SHAPES)
    other = wrap(hvd, again, **options)
    steps(world, again, other, range(1))
    own = other.state_dict()[KEY]
    if world.rank == root:
        other.load_state_dict(state)
    votes = hvd.vote_stats().votes
    hvd.broadcast_optimizer_state(other, root_rank=root)
    assert hvd.vote_stats().votes == votes
    kept = other.state_dict()[KEY]
    for name in ("step", "rule/judged", "rule/agreed"):
        assert torch.equal(kept[name], state[KEY][name])
    mine = state[KEY] if world.rank == root else own
    assert all(torch.equal(kept[f"v/{i}"], mine[f"v/{i}"]) for i in range(3))
    other.zero_grad()
    steps(world, again, other, range(3, 5))
    assert same_everywhere(world, *again)
    assert other.state_dict()[KEY]["step"] == 5


@pytest.mark.ranks(2)
def test_the_step_count_alone_makes_ranks_agree(hvd, world):
    """After a broadcast a resumed run equals the uninterrupted one, coins included."""
    params = parameters(*SHAPES)
    optimizer = wrap(hvd, params)
    steps(world, params, optimizer, range(2))
    state, saved = through_a_file([optimizer.state_dict(), [p.detach() for p in params]])
    steps(world, params, optimizer, range(2, 4))
    restored = [torch.nn.Parameter(p) for p in saved]
    other = wrap(hvd, restored)
    if world.rank == 0:
        other.load_state_dict(state)
    hvd.broadcast_optimizer_state(other, root_rank=0)
    other.zero_grad()
    steps(world, restored, other, range(2, 4))
    for p, q in zip(params, restored, strict=True):
        np.testing.assert_array_equal(plain(p), plain(q))


@pytest.mark.ranks(3)
def test_a_root_outside_of_the_process_set_leaves_votes_alone(hvd, world):
    part = hvd.add_process_set(list(range(1, world.size)))
    try:
        params = parameters(*SHAPES)
        optimizer = wrap(hvd, params, process_set=part)
        if world.rank:
            steps(world, params, optimizer, range(2))
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        assert (KEY in optimizer.state_dict()) == bool(world.rank)
        if world.rank:
            assert optimizer.state_dict()[KEY] == {"step": torch.tensor(2)}
    finally:
        hvd.remove_process_set(part)
