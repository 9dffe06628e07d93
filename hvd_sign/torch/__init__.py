"""The PyTorch binding under the name that users import: ``import hvd_sign.torch as hvd``.

Its submodules are namesakes of Horovod's: ``from hvd_sign.torch.mpi_ops import allreduce_async_``.
"""

from hvd_sign_torch import *

# Of some of these Horovod's are attributes already.
import hvd_sign.torch.compression as compression
import hvd_sign.torch.elastic as elastic
import hvd_sign.torch.functions as functions
import hvd_sign.torch.mpi_ops as mpi_ops
import hvd_sign.torch.optimizer as optimizer
import hvd_sign.torch.sync_batch_norm as sync_batch_norm
