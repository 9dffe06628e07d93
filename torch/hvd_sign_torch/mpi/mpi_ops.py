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
from hvd_sign.standalone.reduce_op import op_or_average as handle_average_backwards_compatibility
from hvd_sign.standalone.tracing import start_timeline, stop_timeline
from hvd_sign_torch.mpi.absent import HorovodInternalError
from hvd_sign_torch.mpi.compression import Compression
from hvd_sign_torch.mpi.differentiable import (
    allgather,
    grouped_allgather,
    grouped_reducescatter,
    reducescatter,
)
from hvd_sign_torch.mpi.gathering import (
    allgather_async,
    alltoall,
    alltoall_async,
    broadcast,
    broadcast_,
    broadcast_async,
    broadcast_async_,
    grouped_allgather_async,
)
from hvd_sign_torch.mpi.hosting import barrier, poll, synchronize
from hvd_sign_torch.mpi.reductions import (
    Adasum,
    Average,
    Max,
    Min,
    Product,
    Sum,
    allreduce,
    allreduce_,
    allreduce_async,
    allreduce_async_,
    grouped_allreduce,
    grouped_allreduce_,
    grouped_allreduce_async,
    grouped_allreduce_async_,
    grouped_reducescatter_async,
    reducescatter_async,
)
from hvd_sign_torch.mpi.sparse import sparse_allreduce_async
from hvd_sign_torch.mpi.util import gpu_available, num_rank_is_power_2
