"""hvd_sign for PyTorch: everything of ``horovod.torch``, and the majority vote."""

from hvd_sign_torch.require import runtime

# Horovod's names, or those of our own MPI runtime, first; ours, below, replace some of them.
if runtime() == "horovod":
    from horovod.torch import *
    from hvd_sign_torch import horovod_elastic as elastic
    from hvd_sign_torch.named_operations import (
        allgather,
        allgather_async,
        alltoall,
        alltoall_async,
        broadcast,
        broadcast_,
        broadcast_async,
        broadcast_async_,
        broadcast_parameters,
        grouped_allgather,
        grouped_allgather_async,
        grouped_reducescatter,
        grouped_reducescatter_async,
        reducescatter,
        reducescatter_async,
    )
else:
    from hvd_sign_torch.mpi import *

from hvd_sign import MajorityVote, VoteCompressor, VoteStats, reset_vote_stats, vote_stats
from hvd_sign_torch.checkpoints import load_checkpoint, save_checkpoint
from hvd_sign_torch.onebit_adam import OneBitAdam
from hvd_sign_torch.ops import (
    allreduce,
    allreduce_,
    allreduce_async,
    allreduce_async_,
    grouped_allreduce,
    grouped_allreduce_,
    grouped_allreduce_async,
    grouped_allreduce_async_,
    poll,
    synchronize,
)
from hvd_sign_torch.sign_compression import Compression
from hvd_sign_torch.sign_optimizers import Lion, SignSGD, Signum
from hvd_sign_torch.state import broadcast_optimizer_state
from hvd_sign_torch.voting_optimizer import DistributedOptimizer
from hvd_sign_torch.backend import add_process_set, init, join, remove_process_set, shutdown
