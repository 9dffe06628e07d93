"""Broadcasts of parameters."""

from __future__ import annotations

from typing import Any

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
