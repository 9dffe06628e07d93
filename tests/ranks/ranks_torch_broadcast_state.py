"""``broadcast_optimizer_state``: every optimizer of PyTorch's, beside plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alike import refused_alike
from helpers import backward, gradients, named, other_module, parameters, plain, same_everywhere

SHAPES = ((4, 3), (5, 2))
ELSEWHERE = ("LBFGS", "Optimizer", "SparseAdam")
OPTIMIZERS = [
    name
    for name, kind in sorted(vars(torch.optim).items())
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in ELSEWHERE
]
OPTIONS = {
    "SGD": {"momentum": 0.9, "weight_decay": 0.1},
    "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.5, "centered": True},
}


def make(name: str, params: list, lr: float = 0.1) -> torch.optim.Optimizer:
    return getattr(torch.optim, name)(params, lr=lr, **OPTIONS.get(name, {}))


def step(params: list, optimizer, turn: int) -> None:
    """One on gradients that are the same on all ranks."""
    for p, gradient in zip(params, gradients(5, params, turn), strict=True):
        p.grad = gradient
    optimizer.step()


@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_go_on_as_without_a_broadcast(hvd, world, name, earlier):
    """The root has made some steps, or none; all others have made one too many, or none."""
    root = world.size - 1
    alone, params = parameters(*SHAPES), parameters(*SHAPES)
    wanted = make(name, alone)
    for turn in range(earlier):
        step(alone, wanted, turn)
    optimizer = make(name, params, lr=0.1 if world.rank == root else 0.7)
    if world.rank == root:
        for turn in range(earlier):
            step(params, optimizer, turn)
    elif earlier:
        step(params, optimizer, 9)
    for p, q in zip(params, alone, strict=True):
        p.data.copy_(q.data)
        p.grad = None
    before = [plain(p) for p in params]
    hvd.broadcast_optimizer_state(optimizer, root_rank=root)
    for p, old in zip(params, before, strict=True):
        np.testing.assert_array_equal(plain(p), old)
    assert len(optimizer.state) == len(wanted.state)
    for turn in range(earlier, earlier + 2):
        step(alone, wanted, turn)
        step(params, optimizer, turn)
    for p, q in zip(params, alone, strict=True):
        np.testing.assert_array_equal(plain(p), plain(q))


@pytest.mark.parametrize("how", ["vote", "plain", "mean"])
def test_an_empty_state_stays_empty(hvd, world, how):
    """Also of Horovod's own optimizer; gradients are zeros then, as Horovod leaves them."""
    params = parameters(*SHAPES, (3,))
    params[2].requires_grad_(False)
    optimizer = torch.optim.Adam(params, lr=0.1)
    if how != "plain":
        module = hvd if how == "vote" else other_module(hvd)
        options = {"op": hvd.MajorityVote} if how == "vote" else {}
        optimizer = module.DistributedOptimizer(optimizer, named(params), **options)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert not optimizer.state
    for p in params[:2]:
        np.testing.assert_array_equal(plain(p.grad), 0)
    assert params[2].grad is None
    before = plain(params[0])
    backward(params[:2], gradients(3, params[:2]))
    optimizer.step()
    moved = plain(params[0]) - before
    given = plain(params[0].grad)
    np.testing.assert_allclose(moved, -0.1 * np.sign(given), atol=1e-6)  # Adam's first step


class Odd(torch.optim.SGD):
    """One with a state of every kind."""

    def fill(self) -> None:
        """Makes it, for the first parameter and under a name."""
        (p, *_) = self.param_groups[0]["params"]
        self.state[p] = {
            "nothing": None,
            "text": "word",
            "half": torch.full((3, 2), 1.5, dtype=torch.bfloat16),
            "flag": torch.tensor([True, False]),
            "columns": torch.arange(12.0).reshape(3, 4).t(),
            "image": torch.arange(48.0).reshape(2, 4, 3, 2).to(memory_format=torch.channels_last),
            "negative": torch._neg_view(torch.arange(3.0)),
            "empty": torch.zeros(0, 3),
            "nested": [{"pair": (torch.tensor(2), 3.5)}, torch.eye(2).to_sparse()],
        }
        self.state["of all"] = torch.tensor(7.0)
        self.param_groups[0]["betas"] = (0.5, 0.25)


def test_states_of_every_kind(hvd, world):
    params = parameters(*SHAPES)
    wanted, optimizer = (Odd(params, lr=0.1) for _ in range(2))
    wanted.fill()
    if world.rank == 0:
        optimizer.fill()
    options, state = optimizer.param_groups[0], optimizer.state
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0] is options
    assert optimizer.state is state
    assert options["betas"] == (0.5, 0.25)
    assert state["of all"] == 7
    assert set(state) == {params[0], "of all"}
    mine, theirs = state[params[0]], wanted.state[params[0]]
    assert list(mine) == list(theirs)
    for key in ("half", "flag", "columns", "image", "negative", "empty"):
        assert torch.equal(mine[key], theirs[key])
        assert mine[key].dtype == theirs[key].dtype
        assert mine[key].stride() == theirs[key].stride()
    assert mine["nothing"] is None
    assert mine["text"] == "word"
    assert mine["nested"][0] == {"pair": (2, 3.5)}
    assert torch.equal(mine["nested"][1].to_dense(), torch.eye(2))


def test_sparse_embeddings_get_sparse_zeros(hvd, world):
    model = torch.nn.ModuleList([torch.nn.Embedding(6, 4, sparse=True), torch.nn.Linear(2, 2)])
    optimizer = torch.optim.SparseAdam(model[0].parameters())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert model[0].weight.grad.is_sparse
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0, model=model)
    assert [p.grad.is_sparse for p in model.parameters()] == [True, False, False]


def test_what_cannot_be_sent_is_told_to_all(hvd, world):
    params = parameters((3,))
    optimizer = torch.optim.SGD(params, lr=0.1)
    if world.rank == 0:
        optimizer.param_groups[0]["rule"] = lambda step: step
    message = refused_alike(
        world, lambda: hvd.broadcast_optimizer_state(optimizer, root_rank=0), (TypeError,)
    )
    assert "pickle cannot copy its state or options" in message
    with pytest.raises(ValueError, match="LBFGS"):
        hvd.broadcast_optimizer_state(torch.optim.LBFGS(params), root_rank=0)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("what", ["number", "shape"])
def test_parameters_that_differ(hvd, world, what):
    last = world.rank == world.size - 1
    shapes = {"number": [(3,)] * (1 + last), "shape": [(3,), (2 + last,)]}[what]
    optimizer = torch.optim.SGD(parameters(*shapes), lr=0.1)
    message = refused_alike(world, lambda: hvd.broadcast_optimizer_state(optimizer, root_rank=0))
    words = {"number": "parameters in each group differs", "shape": "shape of parameter 0.1"}[what]
    assert words in message
    assert same_everywhere(world, torch.ones(1))
