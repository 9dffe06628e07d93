"""Sparse tensors: their entries are gathered, and added up by whoever uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hvd_sign.errors import OperationError
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign_torch.mpi.gathering import allgather_async
from hvd_sign_torch.mpi.hosting import synchronize
from hvd_sign_torch.mpi.reductions import Average, Sum


def sparse_allreduce_async(
    tensor: torch.Tensor, name: str, op: Any, process_set: ProcessSet = global_process_set
) -> Callable[[], torch.Tensor]:
    """Begins the sum, or the mean, of all ranks' sparse tensors.

    Args:
        tensor: sparse (COO), of the same shape and type on all ranks.
        name: of the call.
        op: ``Average`` or ``Sum``.
        process_set: the ranks that take part.

    Returns:
        What waits for the result and returns it: all ranks' entries, not coalesced.

    Raises:
        OperationError: another operation.
    """
    if op not in (Average, Sum):
        raise OperationError(f"op: of sparse tensors expected Average or Sum, got {op!r}")
    places = tensor._indices().t().contiguous()
    gathered_places = allgather_async(places, f"{name}.indices", process_set)
    gathered_values = allgather_async(tensor._values(), f"{name}.values", process_set)

    def wait() -> torch.Tensor:
        indices = synchronize(gathered_places).t()
        values = synchronize(gathered_values)
        if op == Average:
            values = values / len(process_set.members())
        return torch.sparse_coo_tensor(indices, values, tensor.shape, check_invariants=False)

    return wait
