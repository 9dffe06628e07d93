"""Rank 1 leaves in one way before the others do one thing, which ends in an error that names it."""

import os
import sys
import time

from hvd_sign.errors import RankLostError

what, way = sys.argv[1:]
if what.startswith("tensorflow"):
    import tensorflow as tf

    import hvd_sign.tensorflow as hvd
else:
    import torch

    import hvd_sign.torch as hvd


def optimizer(**arguments):
    parameter = torch.nn.Parameter(torch.ones(70))
    return hvd.DistributedOptimizer(torch.optim.SGD([parameter], lr=0.5), **arguments)


def tensorflow_optimizer(**arguments):
    wrapped = hvd.DistributedOptimizer(tf.keras.optimizers.SGD(0.5), **arguments)
    wrapped.apply_gradients([(tf.ones(70), tf.Variable(tf.ones(70)))])


THINGS = {
    "optimizer": lambda: optimizer(compression=hvd.Compression.sign),
    "measured optimizer": lambda: optimizer(op=hvd.MajorityVote, exchange="auto"),
    "dense optimizer": lambda: optimizer(),
    "tensorflow optimizer": lambda: tensorflow_optimizer(compression=hvd.Compression.sign),
    "tensorflow dense optimizer": lambda: tensorflow_optimizer(),
    "process set": lambda: hvd.add_process_set(hvd.ProcessSet([0])),
    "vote": lambda: hvd.allreduce(torch.ones(3), name="v", op=hvd.MajorityVote),
    "sum": lambda: hvd.allreduce(torch.ones(3), name="v", op=hvd.Sum),
    "join": lambda: hvd.join(),
    "init again": lambda: hvd.init(),
}

hvd.init()
rank, ranks = hvd.rank(), hvd.size()
if what == "init again":
    hvd.shutdown()
    hvd.init()  # all come back this time
    hvd.shutdown()
if rank == 1:
    if way == "shutdown":
        hvd.shutdown()
    if way == "exit":
        sys.exit("no such data set")
    sys.exit()
time.sleep(1)
try:
    THINGS[what]()
except RankLostError as error:
    print(f"rank {rank} heard: {error}", flush=True)
if ranks > 2:
    time.sleep(3)  # so that all hear of rank 1 alone
begun = time.monotonic()
hvd.shutdown()
assert time.monotonic() - begun < 20, "nothing is waited for"
print(f"rank {rank} done on {os.environ['HVD_SIGN_RUNTIME']}", flush=True)
