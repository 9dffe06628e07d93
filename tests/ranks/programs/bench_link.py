"""Measures the link, then votes with the exchange chosen by what was measured."""

import numpy as np
from mpi4py import MPI

import hvd_sign
from hvd_sign.cli import main

assert main(["bench-link", "--seconds", "0.5"]) == 0
world = MPI.COMM_WORLD
x = np.random.default_rng(world.rank).standard_normal(10_000).astype(np.float32)
chosen = hvd_sign.allreduce(x, exchange="auto", name="x", step=0)
for exchange in ("sharded", "allgather"):
    again = hvd_sign.allreduce(x, exchange=exchange, name="x", step=0)
    np.testing.assert_array_equal(chosen, again)
print("a rank is done", flush=True)
