"""What ``horovod.torch`` gives, on our own MPI runtime, for jobs in which Horovod is absent.

Tensors on a GPU pass through the host's memory.
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
from hvd_sign.standalone.objects import allgather_object, broadcast_object
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
from hvd_sign_torch.mpi.absent import (
    HorovodInternalError,
    SyncBatchNorm,
    elastic,
    start_timeline,
    stop_timeline,
)
from hvd_sign_torch.mpi.compression import Compression
from hvd_sign_torch.mpi.gathering import (
    allgather,
    allgather_async,
    alltoall,
    alltoall_async,
    broadcast,
    broadcast_,
    broadcast_async,
    broadcast_async_,
    grouped_allgather,
    grouped_allgather_async,
)
from hvd_sign_torch.mpi.hosting import barrier, poll, synchronize
from hvd_sign_torch.mpi.optimizer import DistributedOptimizer
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
    grouped_reducescatter,
    grouped_reducescatter_async,
    reducescatter,
    reducescatter_async,
)
from hvd_sign_torch.mpi.sparse import sparse_allreduce_async
from hvd_sign_torch.mpi.states import broadcast_parameters
