"""What ``horovod.torch`` gives, on our own MPI runtime, for jobs in which Horovod is absent.

Tensors on a GPU pass through the host's memory.
"""

from hvd_sign_torch.mpi import elastic
from hvd_sign_torch.mpi.compression import Compression
from hvd_sign_torch.mpi.functions import *
from hvd_sign_torch.mpi.mpi_ops import *
from hvd_sign_torch.mpi.optimizer import DistributedOptimizer
from hvd_sign_torch.mpi.sync_batch_norm import SyncBatchNorm
