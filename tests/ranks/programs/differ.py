"""A variable that reaches rank 1 alone; arguments: what votes, the variable, its value."""

import os
import sys

kind, variable, value = sys.argv[1:]
rank = next(
    os.environ[name]
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "HOROVOD_RANK")
    if name in os.environ
)
if rank == "1":
    os.environ[variable] = value
try:
    if kind == "numpy":
        import numpy as np

        import hvd_sign

        hvd_sign.allreduce(np.ones(3, np.float32))
    elif kind == "torch":
        import hvd_sign.torch as hvd

        hvd.init()
    else:
        import hvd_sign.tensorflow as hvd

        hvd.init()
except ValueError as error:
    said = f"{type(error).__name__}: {error}"
else:
    said = "no error"
# In one piece with the end of its line, which print() may write by itself, after another rank's.
os.write(sys.stdout.fileno(), f"rank {rank}: {said}\n".encode())
