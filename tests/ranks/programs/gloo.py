"""Under Horovod's Gloo controller: votes are refused clearly, Horovod's operations work."""

import torch

import hvd_sign.torch as hvd

hvd.init()
assert hvd.gloo_enabled()
rank, size = hvd.rank(), hvd.size()


def refused(call) -> None:
    message = "nothing"
    try:
        call()
    except (RuntimeError, ValueError) as error:
        message = str(error)
    assert "MPI" in message, f"a vote over Gloo must be refused and say why, not: {message}"


def step() -> None:
    parameter = torch.nn.Parameter(torch.ones(10))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer = hvd.DistributedOptimizer(optimizer, compression=hvd.Compression.sign)
    parameter.sum().backward()
    optimizer.step()


for _ in range(2):
    refused(lambda: hvd.allreduce(torch.ones(3), op=hvd.MajorityVote))
    refused(lambda: hvd.synchronize(hvd.allreduce_async(torch.ones(3), op=hvd.MajorityVote)))
    refused(step)
    assert hvd.allreduce(torch.ones(3), op=hvd.Sum).tolist() == [size] * 3
    assert hvd.allgather(torch.tensor([rank])).tolist() == list(range(size))

parameter = torch.nn.Parameter(torch.ones(10))
optimizer = hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=0.5))
(parameter.sum() * (1 + rank)).backward()
optimizer.step()
assert torch.allclose(parameter.detach(), 1 - 0.5 * torch.tensor((1 + size) / 2))
hvd.shutdown()
print(f"rank {rank} done", flush=True)
