"""Process sets made of communicators, as Horovod takes them; each rank gives that of its own."""

import pytest
import torch
from mpi4py import MPI

import hvd_sign.torch as hvd

world = MPI.COMM_WORLD
half = hvd.ProcessSet(world.Split(world.rank % 2, world.rank))
assert (half.ranks, half.process_set_id, half.size(), half.included()) == (None, None, None, None)
assert half.mpi_comm.size in (1, 2)
listed = hvd.ProcessSet(iter([1, 0]))
assert listed.ranks == [0, 1]
assert (listed.size(), listed.rank()) == (None, None)
for nothing in (3, ["0"], [1.5]):
    with pytest.raises(ValueError, match=r"communicator|Comm object"):
        hvd.ProcessSet(nothing)

hvd.init(world, process_sets=[half, listed])
assert hvd.global_process_set.mpi_comm == world
assert hvd.size() == 3
mine = [rank for rank in range(3) if rank % 2 == hvd.rank() % 2]
assert (half.ranks, half.size(), half.rank()) == (mine, len(mine), mine.index(hvd.rank()))
assert half.included()
assert listed.included() == (hvd.rank() < 2)

total = hvd.allreduce(torch.tensor([float(hvd.rank())]), op=hvd.Sum, process_set=half)
assert total.item() == sum(mine)
sign = 1.0 if hvd.rank() % 2 else -1.0
verdict = hvd.allreduce(torch.full((70,), sign), op=hvd.MajorityVote, process_set=half)
assert torch.equal(verdict, torch.full((70,), sign))
if listed.included():
    verdict = hvd.allreduce(torch.tensor([-3.0]), op=hvd.MajorityVote, process_set=listed)
    assert verdict.item() == -1
rank = hvd.rank()
hvd.shutdown()
print(f"rank {rank} done", flush=True)
