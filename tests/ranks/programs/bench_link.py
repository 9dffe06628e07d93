"""Measures the link, then votes with the exchange chosen by what was measured.

With an argument, so many ranks are told to share a node.
"""

import os
import sys

import numpy as np
from mpi4py import MPI

import hvd_sign
from hvd_sign.cli import main

world = MPI.COMM_WORLD
if sys.argv[1:]:
    os.environ["HVD_SIGN_NODE"] = str(world.rank // int(sys.argv[1]))
assert main(["bench-link", "--seconds", "0.5"]) == 0
x = np.random.default_rng(world.rank).standard_normal(10_000).astype(np.float32)
chosen = hvd_sign.allreduce(x, exchange="auto", name="x", step=0)
others = [
    hvd_sign.allreduce(x, exchange=exchange, name="x", step=0)
    for exchange in ("sharded", "allgather", "hierarchical")
]
np.testing.assert_array_equal(others[0], others[1])
assert any(np.array_equal(chosen, other) for other in others)
print("a rank is done", flush=True)
