"""What ``horovod.tensorflow`` gives, on our own MPI runtime, for jobs in which Horovod is absent.

Tensors pass through the host. All operations run eagerly and within a ``tf.function``, not in XLA.
"""

from hvd_sign.standalone.features import (
    ccl_built,
    cuda_built,
    ddl_built,
    gloo_built,
    gloo_enabled,
    mpi_built,
    mpi_enabled,
    mpi_threads_supported,
    nccl_built,
    rocm_built,
)
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.ranks import (
    add_process_set,
    cross_rank,
    cross_size,
    init,
    is_homogeneous,
    is_initialized,
    join,
    local_rank,
    local_size,
    rank,
    remove_process_set,
    shutdown,
    size,
)
from hvd_sign.standalone.reduce_op import ReduceOp
from hvd_sign.standalone.reduce_op import op_or_average as handle_average_backwards_compatibility
from hvd_sign_tf.mpi.absent import (
    BroadcastGlobalVariablesHook,
    SyncBatchNormalization,
    broadcast_global_variables,
    elastic,
    start_timeline,
    stop_timeline,
)
from hvd_sign_tf.mpi.basics import (
    check_num_rank_power_of_2,
    local_rank_op,
    local_size_op,
    process_set_included_op,
    rank_op,
    size_op,
)
from hvd_sign_tf.mpi.compression import Compression
from hvd_sign_tf.mpi.gathering import allgather, alltoall, broadcast, grouped_allgather
from hvd_sign_tf.mpi.objects import allgather_object, broadcast_object, broadcast_object_fn
from hvd_sign_tf.mpi.reductions import (
    allreduce,
    gradient_reduction,
    grouped_allreduce,
    grouped_reducescatter,
    reducescatter,
)
from hvd_sign_tf.mpi.variables import broadcast_, broadcast_variables

Average = ReduceOp.Average
Sum = ReduceOp.Sum
Adasum = ReduceOp.Adasum
Min = ReduceOp.Min
Max = ReduceOp.Max
Product = ReduceOp.Product

__all__ = [
    "Adasum",
    "Average",
    "BroadcastGlobalVariablesHook",
    "Compression",
    "Max",
    "Min",
    "ProcessSet",
    "Product",
    "Sum",
    "SyncBatchNormalization",
    "add_process_set",
    "allgather",
    "allgather_object",
    "allreduce",
    "alltoall",
    "broadcast",
    "broadcast_",
    "broadcast_global_variables",
    "broadcast_object",
    "broadcast_object_fn",
    "broadcast_variables",
    "ccl_built",
    "check_num_rank_power_of_2",
    "cross_rank",
    "cross_size",
    "cuda_built",
    "ddl_built",
    "elastic",
    "global_process_set",
    "gloo_built",
    "gloo_enabled",
    "gradient_reduction",
    "grouped_allgather",
    "grouped_allreduce",
    "grouped_reducescatter",
    "handle_average_backwards_compatibility",
    "init",
    "is_homogeneous",
    "is_initialized",
    "join",
    "local_rank",
    "local_rank_op",
    "local_size",
    "local_size_op",
    "mpi_built",
    "mpi_enabled",
    "mpi_threads_supported",
    "nccl_built",
    "process_set_included_op",
    "rank",
    "rank_op",
    "reducescatter",
    "remove_process_set",
    "rocm_built",
    "shutdown",
    "size",
    "size_op",
    "start_timeline",
    "stop_timeline",
]
