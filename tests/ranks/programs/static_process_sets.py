"""Process sets given to init(), as Horovod takes them."""

import torch

import hvd_sign.torch as hvd

pair, rest = hvd.ProcessSet([0, 1]), hvd.ProcessSet([2])
hvd.init(process_sets=[pair, rest])
assert hvd.size() == 3
mine, sign = (pair, 1.0) if hvd.rank() < 2 else (rest, -1.0)
assert mine.included()

got = hvd.allreduce(torch.full((70,), sign), op=hvd.MajorityVote, process_set=mine)
assert torch.equal(got, torch.full((70,), sign))
got = hvd.allreduce(torch.full((70,), sign), op=hvd.MajorityVote)
assert torch.equal(got, torch.ones(70)), "two against one"

parameter = torch.nn.Parameter(torch.zeros(70))
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD([parameter], lr=0.5), compression=hvd.Compression.sign, process_set=mine
)
(parameter.sum() * sign).backward()
optimizer.step()
assert torch.equal(parameter.detach(), torch.full((70,), -0.5 * sign))
rank = hvd.rank()
hvd.shutdown()
print(f"rank {rank} done", flush=True)
