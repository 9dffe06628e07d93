"""Allgather and reducescatter with gradients, each of which needs the other kind of operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hvd_sign.standalone.operations import ReduceScatter
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign_torch.mpi.compression import Compression
from hvd_sign_torch.mpi.gathering import grouped_allgather_async
from hvd_sign_torch.mpi.hosting import apply, synchronize
from hvd_sign_torch.mpi.reductions import (
    Average,
    Sum,
    compressed,
    grouped_allreduce,
    grouped_reducescatter_async,
)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str | None, process_set: ProcessSet, *tensors: torch.Tensor) -> Any:
        """All ranks' tensors."""
        ctx.process_set = process_set
        ctx.rows = [len(tensor) if tensor.dim() else 0 for tensor in tensors]
        return tuple(synchronize(grouped_allgather_async(tensors, name, process_set)))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The mean of all ranks' gradients, of which each takes its own rows."""
        own = ctx.process_set.place()
        every = allgather(torch.tensor([ctx.rows]), process_set=ctx.process_set)
        starts = every[:own].sum(0).tolist()
        means = grouped_allreduce(gradients, process_set=ctx.process_set)
        parts = zip(means, starts, ctx.rows, strict=True)
        return None, None, *(mean.narrow(0, start, rows) for mean, start, rows in parts)


def grouped_allgather(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> list[torch.Tensor]:
    """``allgather`` of several tensors in one call."""
    return list(apply(_AllGather, name, process_set, *tensors))


def allgather(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Joins the ranks' tensors along the first dimension, in which they may differ. Blocks.

    Args:
        tensor: [n, ...].
        name: of the call.
        process_set: the ranks that take part.

    Returns:
        [sum of all ranks' n, ...].

    Raises:
        TypeError: no dense tensor.
        ValueError: a scalar; or, on all ranks alike, types or other dimensions that differ.
    """
    (joined,) = grouped_allgather([tensor], name, process_set)
    return joined


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, arguments: tuple[Any, ...], *tensors: torch.Tensor) -> Any:
        """This rank's shares; ``arguments`` is name, op, process set and two factors."""
        ctx.arguments = arguments
        return tuple(synchronize(grouped_reducescatter_async(tensors, *arguments)))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """The gradients of all shares; as Horovod's, a sum's are times the number of ranks."""
        _, op, process_set, prescale, postscale = ctx.arguments
        factor = prescale * postscale * (len(process_set.members()) if op == Sum else 1)
        return None, *(allgather(g * factor, process_set=process_set) for g in gradients)


def grouped_reducescatter(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    compression: Any = Compression.none,
    op: Any = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[torch.Tensor]:
    """``reducescatter`` of several tensors in one call."""
    packed = compressed(ReduceScatter.kind, tensors, compression, name, process_set)
    arguments = name, op, process_set, prescale_factor, postscale_factor
    shares = apply(_ReduceScatter, arguments, *(tensor for tensor, _ in packed))
    return [
        compression.decompress(share, context)
        for share, (_, context) in zip(shares, packed, strict=True)
    ]


def reducescatter(
    tensor: torch.Tensor,
    name: str | None = None,
    compression: Any = Compression.none,
    op: Any = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> torch.Tensor:
    """Reduces a tensor and gives each rank its share of the first dimension. Blocks.

    Args:
        tensor: [n, ...], of the same shape and type on all ranks.
        name: of the call.
        compression: what is done to the tensor before and after.
        op: ``Average`` (default) or ``Sum``.
        process_set: the M ranks that take part.
        prescale_factor: multiplies before.
        postscale_factor: multiplies after.

    Returns:
        [n / M or one more on the first n mod M ranks, ...].

    Raises:
        TypeError: no dense tensor of numbers.
        ValueError: a scalar, another operation; and, on all ranks alike, as for ``allreduce``.
    """
    factors = prescale_factor, postscale_factor
    (share,) = grouped_reducescatter([tensor], name, compression, op, process_set, *factors)
    return share
