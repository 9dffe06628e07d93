"""A few votes and steps, to be watched; see test_observe.py."""

import numpy as np
import torch

import hvd_sign.torch as hvd
from hvd_sign.rounds import native

native.SEGMENT_BLOCKS = 1024
hvd.init()
parameters = [torch.nn.Parameter(torch.ones(n)) for n in (300_000, 10)]
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD(parameters, lr=0.1), compression=hvd.Compression.sign, bucket_bytes=40
)
for _ in range(3):
    optimizer.zero_grad()
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
hvd.allreduce(torch.ones(3), name="before")
hvd.allreduce(torch.from_numpy(np.ones(5, np.float32)), name="single", op=hvd.MajorityVote)
hvd.allreduce(torch.ones(3), name="after")
