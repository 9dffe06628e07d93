"""The job of this binding, and the operations without a vote: Horovod's, or our MPI runtime's.

Attributes:
    plain: ``horovod.torch``, or ``hvd_sign_torch.mpi``, which has the same names.
    job: its ranks, and the votes among them.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import torch

from hvd_sign.jobs import HOROVOD, HorovodJob, Job, StandaloneJob
from hvd_sign_torch.require import BINDING, RUNTIME, WHY_NOT_HOROVOD, horovod_installed

logger = logging.getLogger("hvd_sign")

plain: Any = import_module("horovod.torch" if RUNTIME == HOROVOD else "hvd_sign_torch.mpi")


def _make_job() -> Job:
    if RUNTIME != HOROVOD:
        return StandaloneJob()
    from hvd_sign_torch.horovod_collectives import TorchCollectives

    return HorovodJob(plain, TorchCollectives, _gather)


def _gather(number: int) -> list[int]:
    numbers: list[int] = plain.allgather(torch.tensor([number]), name="hvd_sign.mpi_ranks").tolist()
    return numbers


job = _make_job()


def init(*args: Any, **kwargs: Any) -> None:
    """Starts the ranks and the vote; takes the arguments of Horovod's ``init``. Collective.

    Raises:
        RuntimeError: MPI cannot be used; the message says why and what helps.
    """
    job.init(*args, **kwargs)
    if job.rank() == 0:
        because = f": {WHY_NOT_HOROVOD}" if WHY_NOT_HOROVOD else ""
        # A Horovod that is there was meant to be used.
        level = logging.WARNING if WHY_NOT_HOROVOD and horovod_installed() else logging.INFO
        logger.log(level, "%s runs on the runtime %r%s", BINDING, RUNTIME, because)


shutdown = job.shutdown
add_process_set = job.add_process_set
remove_process_set = job.remove_process_set
join = job.join
