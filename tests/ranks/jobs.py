"""Small jobs in training, whose checkpoints are tested."""

from __future__ import annotations

import copy

import pytest
import torch
from additions.esteem import Esteem
from additions.feedback import Feedback
from helpers import backward, gradients

from hvd_sign.errors import CheckpointError


class Model(torch.nn.Module):
    """Parameters and a buffer, the same on every rank."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        shapes = ((64, width), (width,), (5000,))
        self.parts = torch.nn.ParameterList(torch.randn(s, generator=generator) for s in shapes)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


KINDS = {
    "Signum": lambda hvd, params: hvd.DistributedOptimizer(hvd.Signum(params, 0.01, seed=5)),
    "Lion": lambda hvd, params: hvd.DistributedOptimizer(hvd.Lion(params, 0.01)),
    "SGD": lambda hvd, params: hvd.DistributedOptimizer(
        torch.optim.SGD(params, 0.01, momentum=0.9), compression=hvd.Compression.signum(0.5)
    ),
    "Adam, Esteem": lambda hvd, params: hvd.DistributedOptimizer(
        torch.optim.Adam(params, 0.01), op=Esteem(7), algorithm=Feedback()
    ),
    "dense": lambda hvd, params: hvd.DistributedOptimizer(torch.optim.Adam(params, 0.01)),
    "unwrapped": lambda hvd, params: hvd.SignSGD(params, 0.01),
}


class Job:
    """A model in training."""

    def __init__(self, hvd, kind: str = "Signum", **options) -> None:
        self.model = Model()
        self.exact = kind == "dense"
        self.params = list(self.model.parameters())
        if options:
            sgd = torch.optim.SGD(self.params, 0.01)
            self.optimizer = hvd.DistributedOptimizer(sgd, op=hvd.MajorityVote, **options)
        else:
            self.optimizer = KINDS[kind](hvd, self.params)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 4], 0.5)

    def train(self, rank: int, turns) -> None:
        for turn in turns:
            self.optimizer.zero_grad()
            grads = gradients(rank, self.params, turn)
            # Horovod's sums of three depend on their order, which is not the same in each run.
            backward(self.params, [(64 * g).round() / 64 for g in grads] if self.exact else grads)
            self.optimizer.step()
            self.scheduler.step()
            self.model.seen += 1

    @property
    def things(self) -> dict:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def all_state(self) -> dict:
        return copy.deepcopy({name: thing.state_dict() for name, thing in self.things.items()})


def equal(one, other) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(v, other[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def errors(world, call) -> str:
    """The one error with which a call ends on all ranks."""
    with pytest.raises(CheckpointError) as raised:
        call()
    told = world.allgather(str(raised.value))
    assert len(set(told)) == 1, told
    assert isinstance(raised.value, OSError)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, RuntimeError)
    return told[0]
