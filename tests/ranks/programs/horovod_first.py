"""Plain horovod.torch is initialised first; ours joins in, and they are shut down in some order."""

import sys

import horovod.torch as plain
import torch

plain.init()
assert "mpi4py.MPI" not in sys.modules, "this must test that Horovod initialises MPI"

import hvd_sign.torch as hvd

hvd.init()
rank, size = plain.rank(), plain.size()
assert (hvd.rank(), hvd.size()) == (rank, size)


def votes() -> None:
    for _ in range(3):
        unnamed = plain.allreduce_async(torch.full((5,), float(rank)), op=plain.Sum)
        got = hvd.allreduce(torch.tensor([1.0, -1.0, 2.0]), op=hvd.MajorityVote, ties="zero")
        assert got.tolist() == [1, -1, 1], got
        assert plain.synchronize(unnamed).tolist() == [sum(range(size))] * 5


votes()
order = sys.argv[1]
if order == "plain":
    plain.shutdown()
elif order == "ours":
    hvd.shutdown()
    assert not plain.is_initialized()
elif order == "again":
    # Whoever initialised MPI finalizes it, here Horovod, and MPI cannot begin twice.
    hvd.shutdown()
    try:
        hvd.init()
    except RuntimeError as error:
        message = str(error)
    else:
        votes()
        hvd.shutdown()
        message = "MPI"
    assert "MPI" in message, message
print(f"rank {rank} done", flush=True)
