"""Ranks, process sets and operations: all that Horovod's module of this name has."""

from hvd_sign.standalone.features import (
    ccl_built,
    check_extension,
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
from hvd_sign.standalone.tracing import start_timeline, stop_timeline
from hvd_sign_tf.mpi.basics import (
    check_num_rank_power_of_2,
    gpu_available,
    local_rank_op,
    local_size_op,
    process_set_included_op,
    rank_op,
    size_op,
)
from hvd_sign_tf.mpi.gathering import allgather, alltoall, broadcast, grouped_allgather
from hvd_sign_tf.mpi.variables import broadcast_

Average = ReduceOp.Average
Sum = ReduceOp.Sum
Adasum = ReduceOp.Adasum
Min = ReduceOp.Min
Max = ReduceOp.Max
Product = ReduceOp.Product
num_rank_is_power_2 = check_num_rank_power_of_2
