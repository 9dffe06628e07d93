"""What moves tensors between ranks without computing: allgather, broadcast, alltoall.

Gradients flow as through Horovod's: what one rank gave to all gets the mean of their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hvd_sign.standalone.groups import AllGathers
from hvd_sign.standalone.objects import place
from hvd_sign.standalone.operations import AllGather, AllToAll, Array, Broadcast
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.ranks import rank
from hvd_sign_torch.mpi.hosting import OperationHandle, apply, begin, from_items, items, synchronize
from hvd_sign_torch.mpi.reductions import grouped_allreduce


def grouped_allgather_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> OperationHandle:
    """``grouped_allgather``, for ``poll()`` and ``synchronize()``."""

    def make(communicator: Any) -> AllGathers:
        if not tensors:
            raise ValueError("tensors: expected at least one, got none")
        return AllGathers(communicator, [AllGather(communicator, items(t)) for t in tensors])

    def finish(arrays: list[Array]) -> list[torch.Tensor]:
        return [from_items(a, t) for a, t in zip(arrays, tensors, strict=True)]

    return begin(AllGathers, make, tensors, finish, name, process_set)


def allgather_async(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> OperationHandle:
    """``allgather``, for ``poll()`` and ``synchronize()``."""
    return grouped_allgather_async([tensor], name, process_set).only()


def _broadcast(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None,
    process_set: ProcessSet,
    finish: Callable[[torch.Tensor], torch.Tensor],
) -> OperationHandle:
    def make(communicator: Any) -> Broadcast:
        return Broadcast(communicator, items(tensor), place(root_rank, process_set))

    def unpack(array: Array) -> torch.Tensor:
        return finish(from_items(array, tensor))

    return begin(Broadcast, make, [tensor], unpack, name, process_set)


def broadcast_async(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> OperationHandle:
    """``broadcast``, for ``poll()`` and ``synchronize()``."""
    return _broadcast(tensor, root_rank, name, process_set, lambda received: received)


def broadcast_async_(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> OperationHandle:
    """``broadcast_``, for ``poll()`` and ``synchronize()``, which writes the result."""

    def take(received: torch.Tensor) -> torch.Tensor:
        tensor.detach().copy_(received)
        return tensor

    return _broadcast(tensor, root_rank, name, process_set, take)


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, root: int, name: str | None, process_set: ProcessSet
    ) -> Any:
        """The root's tensor."""
        ctx.root, ctx.process_set = root, process_set
        return synchronize(broadcast_async(tensor, root, name, process_set))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The mean of all ranks' gradients for the root, zero for the others."""
        (mean,) = grouped_allreduce(gradients, process_set=ctx.process_set)
        return (mean if rank() == ctx.root else torch.zeros_like(mean)), None, None, None


def broadcast(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """Gives every rank the tensor of one. Blocks.

    Args:
        tensor: of the same shape and type on all ranks.
        root_rank: whose, among all ranks.
        name: of the call.
        process_set: the ranks that take part.

    Raises:
        TypeError: no dense tensor.
        ValueError: the root is none of them; or, on all ranks alike, ranks that differ.
    """
    return apply(_Broadcast, tensor, root_rank, name, process_set)  # type: ignore[no-any-return]


def broadcast_(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """``broadcast`` in place."""
    handle = broadcast_async_(tensor, root_rank, name, process_set)
    return synchronize(handle)  # type: ignore[no-any-return]


def alltoall_async(
    tensor: torch.Tensor,
    splits: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> OperationHandle:
    """``alltoall``, for ``poll()`` and ``synchronize()``, which returns both its results."""

    def make(communicator: Any) -> AllToAll:
        numbers = splits
        if isinstance(splits, torch.Tensor):
            if splits.is_floating_point():
                raise ValueError(f"splits: expected integers, got a tensor of {splits.dtype}")
            numbers = splits.tolist()
        return AllToAll(communicator, items(tensor), numbers)

    def finish(result: tuple[Array, Array]) -> tuple[torch.Tensor, torch.Tensor]:
        received = torch.from_numpy(result[1])
        if isinstance(splits, torch.Tensor):
            received = received.to(splits.device, splits.dtype)
        return from_items(result[0], tensor), received

    return begin(AllToAll, make, [tensor], finish, name, process_set)


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, splits: Any, name: str | None, process_set: ProcessSet
    ) -> Any:
        """What came, and how many rows from each rank."""
        ctx.process_set = process_set
        output, received = synchronize(alltoall_async(tensor, splits, name, process_set))
        ctx.received = received
        ctx.mark_non_differentiable(received)
        return output, received

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The rows of the gradient, sent back to where they came from."""
        back, _ = alltoall(gradients[0], ctx.received, process_set=ctx.process_set)
        return back, None, None, None


def alltoall(
    tensor: torch.Tensor,
    splits: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Sends rows of a tensor to each rank and joins what comes. Blocks.

    Args:
        tensor: [n, ...].
        splits: how many rows go to each rank, a tensor of integers or a sequence; None: equal
            parts.
        name: of the call.
        process_set: the M ranks that take part.

    Returns:
        What came, in order of ranks; if ``splits`` is given, also how many rows from each: [M].

    Raises:
        TypeError: no dense tensor.
        ValueError: rows that cannot be split so; or, on all ranks alike, types or other
            dimensions that differ.
    """
    output, received = apply(_AllToAll, tensor, splits, name, process_set)
    return output if splits is None else (output, received)
