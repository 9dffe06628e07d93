"""The backend of this binding, and the operations without a vote: Horovod's, or our MPI runtime's.

Attributes:
    horovod_api: ``horovod.torch``, or ``hvd_sign_torch.mpi``, which has the same names.
    backend: its ranks, and the votes among them.
"""

from __future__ import annotations

from typing import Any

import torch

from hvd_sign_torch.require import BINDING

horovod_api = BINDING.horovod_api


def _collectives() -> Any:
    from hvd_sign_torch.horovod_collectives import TorchCollectives

    return TorchCollectives


def _gather(number: int) -> list[int]:
    numbers: list[int] = horovod_api.allgather(
        torch.tensor([number]), name="hvd_sign.mpi_ranks"
    ).tolist()
    return numbers


backend = BINDING.make_backend(_collectives, _gather)


def init(*args: Any, **kwargs: Any) -> None:
    """Starts the ranks and the vote; takes the arguments of Horovod's ``init``. Collective.

    Raises:
        RuntimeError: MPI cannot be used; the message says why and what helps.
    """
    backend.init(*args, **kwargs)
    BINDING.announce(backend)


shutdown = backend.shutdown
add_process_set = backend.add_process_set
remove_process_set = backend.remove_process_set


def join(device: int = -1) -> int:
    """Serves the other ranks until all have joined: a joined rank abstains in every vote.

    Collective over all ranks. As after Horovod's ``join``, parameters of ranks that joined early
    are out of date: broadcast them from the returned rank.

    Args:
        device: where Horovod makes the zeros that it sends for a joined rank; on our own runtime,
            which sends none, without effect.

    Returns:
        The rank that joined last.
    """
    return backend.join(device)
