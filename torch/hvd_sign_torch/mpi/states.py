"""Broadcasts of what a training starts from: parameters, optimizers' states, any object."""

from __future__ import annotations

import io
from typing import Any

import torch

from hvd_sign.standalone.objects import broadcast_object
from hvd_sign.standalone.ranks import rank
from hvd_sign_torch.mpi.gathering import broadcast_async_
from hvd_sign_torch.mpi.hosting import synchronize


def broadcast_parameters(params: Any, root_rank: int) -> None:
    """Gives every rank one rank's parameters. Blocks; collective over all ranks.

    Args:
        params: a ``state_dict()``, or ``named_parameters()`` or ``parameters()`` as a list; the
            same names, shapes and types on all ranks.
        root_rank: whose.

    Raises:
        ValueError: something else; or, on all ranks alike, ranks that differ.
    """
    if isinstance(params, dict):
        named = sorted(params.items())
    elif isinstance(params, list):
        named = [item if isinstance(item, tuple) else (None, item) for item in params]
    else:
        raise ValueError(
            f"params: expected a dict or a list of parameters, got {type(params).__name__}"
        )
    handles = [broadcast_async_(tensor, root_rank, name) for name, tensor in named]
    for handle in handles:
        synchronize(handle)


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int, model: torch.nn.Module | None = None
) -> None:
    """Gives every rank one rank's state of an optimizer. Blocks; collective over all ranks.

    An empty state stays empty: no step is made to fill it.

    Args:
        optimizer: of equally many parameters on all ranks.
        root_rank: whose.
        model: not needed; Horovod looks there for sparse parameters.

    Raises:
        ValueError: of LBFGS, as Horovod; or this rank's parameter groups differ from the root's.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer: the state of LBFGS cannot be broadcast")
    buffer = io.BytesIO()
    if rank() == root_rank:
        torch.save(optimizer.state_dict(), buffer)
    packed = broadcast_object(buffer.getvalue(), root_rank, "optimizer.state")
    if rank() != root_rank:
        # Through host memory: a rank may not have the device of that number.
        state = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=False)
        optimizer.load_state_dict(state)
