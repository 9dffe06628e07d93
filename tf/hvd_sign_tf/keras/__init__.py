"""hvd_sign for Keras: everything of ``horovod.tensorflow.keras``, and the majority vote."""

from hvd_sign_tf.require import runtime

if runtime() == "horovod":
    from horovod.tensorflow.keras import *
else:
    from hvd_sign_tf.mpi import *

from hvd_sign import MajorityVote, VoteCompressor, VoteStats, reset_vote_stats, vote_stats
import hvd_sign_tf.keras.callbacks as callbacks  # Horovod's is an attribute already
from hvd_sign_tf.keras.operations import (
    DistributedOptimizer,
    PartialDistributedOptimizer,
    allgather,
    allreduce,
    broadcast,
    broadcast_global_variables,
    load_model,
    reducescatter,
)
from hvd_sign_tf.ops import grouped_allreduce
from hvd_sign_tf.sign_compression import Compression
from hvd_sign_tf.onebit_adam import OneBitAdam
from hvd_sign_tf.sign_optimizers import Lion, SignSGD, Signum
from hvd_sign_tf.backend import (
    add_process_set,
    barrier,
    init,
    join,
    remove_process_set,
    shutdown,
)
