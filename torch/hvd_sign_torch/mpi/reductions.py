"""What computes with all ranks' tensors, at once or not: allreduce and reducescatter.

Gradients flow as through Horovod's: that of a sum is summed, that of a share is gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hvd_sign.standalone.groups import ReduceScatters
from hvd_sign.standalone.operations import AllReduce, Array, ReduceScatter
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.ranks import ranks
from hvd_sign.standalone.reduce_op import ReduceOp, op_or_average
from hvd_sign_torch.mpi.compression import Compression
from hvd_sign_torch.mpi.hosting import (
    OperationHandle,
    apply,
    begin,
    from_numbers,
    numbers,
    synchronize,
)

Average, Sum, Adasum, Min, Max, Product = (
    ReduceOp.Average,
    ReduceOp.Sum,
    ReduceOp.Adasum,
    ReduceOp.Min,
    ReduceOp.Max,
    ReduceOp.Product,
)


def _reduce(
    tensors: Sequence[torch.Tensor],
    average: bool | None,
    name: str | None,
    op: Any,
    factors: tuple[float, float],
    process_set: ProcessSet,
    *,
    in_place: bool,
) -> OperationHandle:
    def make(communicator: Any) -> AllReduce:
        if not tensors:
            raise ValueError("tensors: expected at least one, got none")
        arrays = [numbers(tensor) for tensor in tensors]
        return AllReduce(communicator, arrays, op_or_average(op, average), *factors)

    def finish(arrays: list[Array]) -> list[torch.Tensor]:
        reduced = [from_numbers(a, t) for a, t in zip(arrays, tensors, strict=True)]
        if not in_place:
            return reduced
        for tensor, result in zip(tensors, reduced, strict=True):
            tensor.detach().copy_(result)
        return list(tensors)

    return begin(AllReduce, make, tensors, finish, name, process_set)


def compressed(
    kind: str,
    tensors: Sequence[torch.Tensor],
    compression: Any,
    name: str | None,
    process_set: ProcessSet,
) -> list[tuple[torch.Tensor, Any]]:
    """What travels of each tensor, and its context; what is refused ends the other ranks' calls."""
    with ranks().stream(process_set).refusing(kind, name):
        return [compression.compress(tensor) for tensor in tensors]


def grouped_allreduce_async(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> OperationHandle:
    """``grouped_allreduce``, for ``poll()`` and ``synchronize()``."""
    factors = prescale_factor, postscale_factor
    return _reduce(tensors, average, name, op, factors, process_set, in_place=False)


def grouped_allreduce_async_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> OperationHandle:
    """``grouped_allreduce_``, for ``poll()`` and ``synchronize()``, which writes the result."""
    factors = prescale_factor, postscale_factor
    return _reduce(tensors, average, name, op, factors, process_set, in_place=True)


def allreduce_async(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> OperationHandle:
    """``allreduce``, for ``poll()`` and ``synchronize()``."""
    factors = prescale_factor, postscale_factor
    return _reduce([tensor], average, name, op, factors, process_set, in_place=False).only()


def allreduce_async_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> OperationHandle:
    """``allreduce_``, for ``poll()`` and ``synchronize()``, which writes the result."""
    factors = prescale_factor, postscale_factor
    return _reduce([tensor], average, name, op, factors, process_set, in_place=True).only()


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, arguments: tuple[Any, ...], *tensors: torch.Tensor) -> Any:
        """All tensors reduced; ``arguments`` is average, name, op, two factors and process set."""
        ctx.arguments = arguments
        return tuple(synchronize(grouped_allreduce_async(tensors, *arguments)))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Their gradients, reduced in the same way."""
        average, _, *others = ctx.arguments
        return None, *apply(_AllReduce, (average, None, *others), *gradients)


def grouped_allreduce(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[torch.Tensor]:
    """``allreduce`` of several tensors in one call."""
    packed = compressed(AllReduce.kind, tensors, compression, name, process_set)
    arguments = average, name, op, prescale_factor, postscale_factor, process_set
    reduced = apply(_AllReduce, arguments, *(tensor for tensor, _ in packed))
    return [
        compression.decompress(tensor, context)
        for tensor, (_, context) in zip(reduced, packed, strict=True)
    ]


def allreduce(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """Reduces a tensor over all ranks. Blocks.

    Args:
        tensor: of the same shape and type on all ranks.
        average: older than ``op``: True is ``Average``, False ``Sum``.
        name: of the call.
        compression: what is done to the tensor before and after.
        op: ``Average`` (default), ``Sum``, ``Min``, ``Max`` or ``Product``.
        prescale_factor: multiplies before.
        postscale_factor: multiplies after.
        process_set: the ranks that take part.

    Raises:
        TypeError: no dense tensor of numbers.
        ValueError: an unknown operation; a name already under way; and, on all ranks alike, ranks
            that differ in shape, type, operation or factors, or of which some were refused.
    """
    factors = prescale_factor, postscale_factor
    (reduced,) = grouped_allreduce([tensor], average, name, compression, op, *factors, process_set)
    return reduced


def grouped_allreduce_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[torch.Tensor]:
    """``grouped_allreduce`` in place."""
    factors = prescale_factor, postscale_factor
    handle = grouped_allreduce_async_(tensors, average, name, op, *factors, process_set)
    return synchronize(handle)  # type: ignore[no-any-return]


def allreduce_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """``allreduce`` in place."""
    factors = prescale_factor, postscale_factor
    handle = allreduce_async_(tensor, average, name, op, *factors, process_set)
    return synchronize(handle)  # type: ignore[no-any-return]


def grouped_reducescatter_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    op: Any = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> OperationHandle:
    """``grouped_reducescatter``, for ``poll()`` and ``synchronize()``."""

    def make(communicator: Any) -> ReduceScatters:
        if not tensors:
            raise ValueError("tensors: expected at least one, got none")
        factors = prescale_factor, postscale_factor
        return ReduceScatters(
            communicator, [ReduceScatter(communicator, numbers(t), op, *factors) for t in tensors]
        )

    def finish(arrays: list[Array]) -> list[torch.Tensor]:
        return [from_numbers(a, t) for a, t in zip(arrays, tensors, strict=True)]

    return begin(ReduceScatters, make, tensors, finish, name, process_set)


def reducescatter_async(
    tensor: torch.Tensor,
    name: str | None = None,
    op: Any = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> OperationHandle:
    """``reducescatter``, for ``poll()`` and ``synchronize()``."""
    factors = prescale_factor, postscale_factor
    return grouped_reducescatter_async([tensor], name, op, process_set, *factors).only()
