"""What ``horovod.tensorflow`` gives, on our own MPI runtime, for jobs in which Horovod is absent.

Tensors pass through the host. All operations run eagerly and within a ``tf.function``, not in XLA.
"""

from hvd_sign_tf.mpi import elastic
from hvd_sign_tf.mpi.absent import BroadcastGlobalVariablesHook, broadcast_global_variables
from hvd_sign_tf.mpi.compression import Compression
from hvd_sign_tf.mpi.functions import *
from hvd_sign_tf.mpi.gradient_aggregation import LocalGradientAggregationHelper
from hvd_sign_tf.mpi.mpi_ops import *
from hvd_sign_tf.mpi.reductions import (
    allreduce,
    gradient_reduction,
    grouped_allreduce,
    grouped_reducescatter,
    reducescatter,
)
from hvd_sign_tf.mpi.sync_batch_norm import SyncBatchNormalization
from hvd_sign_tf.mpi.util import refs_to_vars, vars_to_refs
