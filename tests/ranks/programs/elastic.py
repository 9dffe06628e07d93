"""Horovod's elastic run under ours: a failure resets votes too, those amid a step among them."""

from __future__ import annotations

import pytest
import torch

import hvd_sign.torch as hvd
from hvd_sign_torch import horovod_elastic

hvd.init()
parameter = torch.nn.Parameter(torch.ones(3))
named = [("only", parameter)]


def check_vote() -> None:
    verdict = hvd.allreduce(torch.tensor([1.0, -2.0]), op=hvd.MajorityVote)
    assert verdict.tolist() == [1.0, -1.0]


model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
mean = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
with torch.no_grad():
    model.weight.fill_(float(hvd.rank()))
state = hvd.elastic.TorchState(model, mean, turn=hvd.rank())
calls = []


@hvd.elastic.run
def train(state: object) -> str:
    calls.append(state.turn)
    assert model.weight.tolist() == [[0.0, 0.0]]
    check_vote()
    if len(calls) == 1:
        raise hvd.HorovodInternalError("as if a rank had been lost")
    return "trained"


assert train(state) == "trained"
assert calls == [0, 0]

voting = hvd.DistributedOptimizer(hvd.Signum([parameter], lr=0.5, beta=0.5), named_parameters=named)
state = hvd.elastic.TorchState(optimizer=mean, turn=0)
state.optimizer = voting  # in the place of one that does not vote
seen = []


def vote(value: float) -> None:
    (parameter.sum() * (value + hvd.rank())).backward()


@hvd.elastic.run
def train_by_vote(state: object) -> None:
    """Fails amid its third step, and once more where nothing is under way."""
    seen.append((state.turn, voting.state_dict()["hvd_sign"]["step"].item()))
    while state.turn < 4:
        voting.zero_grad()
        vote(2.0)
        if len(seen) == 1 and state.turn == 2:
            raise hvd.HorovodInternalError("as if a rank had been lost")
        voting.step()
        state.turn += 1
        if state.turn == 1:
            state.commit()
        if len(seen) == 2 and state.turn == 3:
            raise hvd.HorovodInternalError("and another one")


begins = horovod_elastic.init
lost = iter([True])


def loses_another() -> None:
    """A rank more is lost as the others begin anew, once."""
    if next(lost, False):
        raise hvd.HorovodInternalError("as if one more had been lost")
    begins()


horovod_elastic.init = loses_another
parameter.data.fill_(8.0)
state.save()
train_by_vote(state)
assert seen == [(0, 0), (1, 1), (1, 1)]
assert next(lost, None) is None
# One step is committed; three more are the last. The parameter, not in the state, took them all.
momentum = (2.0 + hvd.rank()) * (1 - 0.5**4)
assert voting.state_dict()["hvd_sign"]["momentum/0"].tolist() == [momentum] * 3
assert voting.state_dict()["hvd_sign"]["step"].item() == 4
assert parameter.tolist() == [8.0 - 0.5 * (2 + 2 + 3)] * 3

part = hvd.ProcessSet([0])
hvd.shutdown()
hvd.init(process_sets=[part])
among = hvd.DistributedOptimizer(
    torch.optim.Adam([parameter], lr=0.5),
    named_parameters=named,
    compression=hvd.Compression.sign,
    process_set=part,
)
for refused in (
    lambda: hvd.elastic.TorchState(optimizer=among),
    lambda: setattr(state, "optimizer", among),
):
    with pytest.raises(ValueError, match="votes among a process set, which does not outlast"):
        refused()
print(f"rank {hvd.rank()} done", flush=True)
hvd.shutdown()
