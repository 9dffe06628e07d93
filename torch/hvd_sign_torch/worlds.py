"""The job of this binding: Horovod's ranks, and the votes among them."""

from __future__ import annotations

import horovod.torch as horovod
import torch

from hvd_sign.jobs import HorovodJob
from hvd_sign_torch.horovod_collectives import TorchCollectives


def _gather(number: int) -> list[int]:
    numbers: list[int] = horovod.allgather(
        torch.tensor([number]), name="hvd_sign.mpi_ranks"
    ).tolist()
    return numbers


job = HorovodJob(horovod, TorchCollectives, _gather)

init = job.init
shutdown = job.shutdown
add_process_set = job.add_process_set
remove_process_set = job.remove_process_set
join = job.join
