"""The core with numpy and mpi4py alone: no Horovod, no framework, no launcher needed."""

import sys

import numpy as np
from mpi4py import MPI

import hvd_sign

assert not {"torch", "horovod", "tensorflow"} & set(sys.modules)
signal = np.arange(-50, 51, dtype="float32")
got = hvd_sign.allreduce(signal, op=hvd_sign.MajorityVote, ties="zero")
assert np.array_equal(got, np.sign(signal))
if "finalize" in sys.argv:  # a user who finalizes MPI by hand
    MPI.Finalize()
print("a rank is done", flush=True)
