"""The program ends with votes in flight and nothing shut down; it must end all the same."""

import torch

import hvd_sign.torch as hvd

hvd.init()
handles = [hvd.allreduce_async(torch.ones(1000), op=hvd.MajorityVote) for _ in range(5)]
parameter = torch.nn.Parameter(torch.ones(100))
optimizer = torch.optim.SGD([parameter], lr=0.5)
optimizer = hvd.DistributedOptimizer(optimizer, compression=hvd.Compression.sign)
parameter.sum().backward()
print(f"rank {hvd.rank()} done", flush=True)
