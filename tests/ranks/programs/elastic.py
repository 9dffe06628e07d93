"""Horovod's elastic run under ours: a failure resets votes too; voting optimizers are refused."""

from __future__ import annotations

import pytest
import torch

import hvd_sign.torch as hvd

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

voting = hvd.DistributedOptimizer(
    torch.optim.Adam([parameter], lr=0.5), named_parameters=named, compression=hvd.Compression.sign
)
for refused in (
    lambda: hvd.elastic.TorchState(optimizer=voting),
    lambda: setattr(state, "optimizer", voting),
):
    with pytest.raises(NotImplementedError, match="votes, which elastic jobs do not serve"):
        refused()
assert parameter.tolist() == [1.0] * 3
print(f"rank {hvd.rank()} done", flush=True)
hvd.shutdown()
