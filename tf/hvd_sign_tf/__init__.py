"""hvd_sign for TensorFlow: everything of ``horovod.tensorflow``, and the majority vote."""

from hvd_sign_tf.require import runtime

# Horovod's names, or those of our own MPI runtime, first; ours, below, replace some of them.
if runtime() == "horovod":
    from horovod.tensorflow import *
    from hvd_sign_tf import horovod_elastic as elastic
else:
    from hvd_sign_tf.mpi import *

from hvd_sign import MajorityVote, VoteCompressor, VoteStats, reset_vote_stats, vote_stats
import hvd_sign_tf.keras as keras  # Horovod's may be an attribute already
from hvd_sign_tf.ops import allreduce, grouped_allreduce
from hvd_sign_tf.optimizer import DistributedOptimizer
from hvd_sign_tf.sign_compression import Compression
from hvd_sign_tf.onebit_adam import OneBitAdam
from hvd_sign_tf.sign_optimizers import Lion, SignSGD, Signum
from hvd_sign_tf.tape import DistributedGradientTape, PartialDistributedGradientTape
from hvd_sign_tf.backend import (
    add_process_set,
    barrier,
    init,
    join,
    remove_process_set,
    shutdown,
)
