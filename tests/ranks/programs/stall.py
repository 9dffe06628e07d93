"""Rank 1 comes late to an optimizer's vote and to an ad-hoc one, or never; see test_stalls.py."""

import logging
import sys
import time

import numpy as np
from mpi4py import MPI

import hvd_sign

logging.basicConfig(format="%(message)s")
rank = MPI.COMM_WORLD.rank
late = float(sys.argv[1])
hvd_sign.allreduce(np.ones(3, np.float32), name="warm-up")
if rank == 1:
    time.sleep(late)
try:
    verdict = hvd_sign.allreduce(np.ones(3, np.float32), name="gradient")
except TimeoutError as error:
    print(f"rank {rank} gave up: {error}", flush=True)
    MPI.COMM_WORLD.Abort(3)
assert verdict.tolist() == [1, 1, 1]
print(f"rank {rank} done", flush=True)
