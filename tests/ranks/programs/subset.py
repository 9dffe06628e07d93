"""hvd.init(comm=...): Horovod's ranks are then not the world's, and votes go by Horovod's."""

import torch
from mpi4py import MPI

import hvd_sign.torch as hvd

world = MPI.COMM_WORLD
# The first rank alone, the others together in the opposite order.
part = world.Split(0 if world.rank == 0 else 1, -world.rank)
hvd.init(comm=part)
assert (hvd.rank(), hvd.size()) == (part.rank, part.size)

mine = torch.full((200,), 1.0 if world.rank == 0 else -1.0)
for turn in range(1 if world.rank == 0 else 3):
    got = hvd.allreduce(mine, op=hvd.MajorityVote, ties="zero")
    assert torch.equal(got, mine), turn

parameter = torch.nn.Parameter(torch.zeros(200))
optimizer = torch.optim.SGD([parameter], lr=0.5)
optimizer = hvd.DistributedOptimizer(optimizer, compression=hvd.Compression.sign, ties="zero")
(parameter * mine).sum().backward()
optimizer.step()
assert torch.equal(parameter.detach(), -0.5 * mine)
hvd.broadcast_parameters({"p": parameter}, root_rank=0)
hvd.shutdown()
print(f"rank {world.rank} done", flush=True)
