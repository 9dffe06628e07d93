"""Under Horovod's Gloo controller: votes travel over Horovod's collectives, beside its own."""

import torch

import hvd_sign.torch as hvd

hvd.init()
assert hvd.gloo_enabled()
rank, size = hvd.rank(), hvd.size()

for _ in range(2):
    verdict = hvd.allreduce(torch.tensor([1.0, -1.0, 2.0 * rank - 1.0]), op=hvd.MajorityVote)
    assert verdict[:2].tolist() == [1, -1]
    assert abs(verdict[2]) == 1
    assert all(torch.equal(verdict, theirs) for theirs in hvd.allgather(verdict[None]))
    assert hvd.allreduce(torch.ones(3), op=hvd.Sum).tolist() == [size] * 3
    assert hvd.allgather(torch.tensor([rank])).tolist() == list(range(size))

parameter = torch.nn.Parameter(torch.ones(10))
optimizer = hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=0.5))
(parameter.sum() * (1 + rank)).backward()
optimizer.step()
assert torch.allclose(parameter.detach(), 1 - 0.5 * torch.tensor((1 + size) / 2))

voting = hvd.DistributedOptimizer(
    torch.optim.SGD([parameter], lr=0.5), compression=hvd.Compression.sign
)
voting.zero_grad()
(parameter.sum() * (1 + rank)).backward()
voting.step()
assert parameter.grad.tolist() == [1] * 10

try:
    hvd.join()
except RuntimeError as error:
    refused = str(error)
assert "an optimizer votes over Horovod's own collectives" in refused
print(f"rank {rank} done", flush=True)
