"""Communication hooks of PyTorch's DistributedDataParallel, by the names of their methods."""

# No `from __future__ import annotations`: DDP looks at the hooks' annotations.
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.methods.baselines import BASELINES
from benchmarks.methods.baselines.base import exchange
from benchmarks.methods.catalogue import Method

# Plain allreduces before PowerSGD begins; the least that its warm start allows.
POWERSGD_START = 2


class PowerSGD:
    """PyTorch's PowerSGD, whose buckets are exchanged one after another on a thread of their own.

    A bucket takes three collectives, and the later ones start when the earlier ones have ended.
    With several buckets in flight their order would differ from rank to rank, and Gloo, which
    matches collectives by their order, would mix them up. Backward goes on meanwhile.

    Args:
        rank: of the approximation.
        seed: of its first guess; the same on all ranks.
    """

    def __init__(self, rank: int, seed: int) -> None:
        self.state = PowerSGDState(
            process_group=None,
            matrix_approximation_rank=rank,
            start_powerSGD_iter=POWERSGD_START,
            random_seed=seed,
        )
        self._thread = ThreadPoolExecutor(1)

    def start(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """The bucket's future, float32[d]."""
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()

        def run() -> None:
            try:
                done.set_result(powerSGD_hook(self.state, bucket).wait())
            except Exception as error:
                done.set_exception(error)

        self._thread.submit(run)
        return done


def powersgd(state: PowerSGD, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The communication hook of PowerSGD."""
    return state.start(bucket)


def bf16(group: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """PyTorch's bf16 hook; by its name DDP refuses it without NCCL, though Gloo sums bf16 too."""
    return default_hooks.bf16_compress_hook(group, bucket)


PLAIN = {"ddp-fp16": default_hooks.fp16_compress_hook, "ddp-bf16": bf16}


def register(model: DistributedDataParallel, method: Method, seed: int) -> None:
    """Gives a model the communication hook of a method of the groups `ddp` and `baselines`.

    Args:
        model: not used yet.
        method: what to register; `ddp` itself has no hook.
        seed: of what is random in the method; the same on all ranks.
    """
    if method.name in PLAIN:
        model.register_comm_hook(dist.group.WORLD, PLAIN[method.name])
    elif method.name in BASELINES:
        model.register_comm_hook(BASELINES[method.name](seed), exchange)
    elif "rank" in method.options:
        model.register_comm_hook(PowerSGD(method.options["rank"], seed), powersgd)
