"""What the PyTorch tests share: exact gradients, gathering, and the reference for tensors."""

from __future__ import annotations

import numpy as np
import reference
import torch
from mpi4py import MPI

TIES = ("coin", "zero", "positive")
EXCHANGES = ("sharded", "allgather")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def plain(tensor: torch.Tensor) -> np.ndarray:
    """The values as float64, exact for every floating type."""
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return tensor.detach().double().contiguous().numpy().copy()


def expected(world: MPI.Intracomm, tensor: torch.Tensor, ties: str = "coin") -> reference.Expected:
    """The verdict of what every rank of `world` holds. Collective over `world`."""
    return reference.verdict(world.allgather(plain(tensor)), ties)


def mean_abs(world: MPI.Intracomm, tensor: torch.Tensor) -> float:
    return reference.mean_abs(world.allgather(plain(tensor)))


def same_everywhere(world: MPI.Intracomm, *tensors: torch.Tensor) -> bool:
    """Whether all ranks hold the same values, bit for bit."""
    mine = b"".join(plain(tensor).tobytes() for tensor in tensors)
    return len(set(world.allgather(mine))) == 1


def values(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal values that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def parameters(*shapes: tuple, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    """The same parameters on every rank."""
    return [torch.nn.Parameter(values(i, *shape, dtype=dtype)) for i, shape in enumerate(shapes)]


def gradients(rank: int, params: list, turn: int = 0) -> list[torch.Tensor]:
    """Other values on each rank and in each turn, with some zeros, in the parameters' types."""
    result = []
    for i, p in enumerate(params):
        gradient = values(1000 + 97 * turn + 11 * i + 7919 * rank, *p.shape, dtype=p.dtype)
        gradient[values(5 + i + rank, *p.shape) > 1.2] = 0
        result.append(gradient)
    return result


def backward(params: list, grads: list) -> None:
    """A backward pass that leaves exactly `grads` in the parameters (None: it takes no part)."""
    terms = [
        (p.double() * g.double()).sum() for p, g in zip(params, grads, strict=True) if g is not None
    ]
    torch.stack(terms).sum().backward()


def named(params: list) -> list[tuple[str, torch.Tensor]]:
    return [(f"layer.{i}", p) for i, p in enumerate(params)]


def other_module(hvd):
    """Through which programs call as well: Horovod's own; on our own runtime there is only ours."""
    if hvd.runtime() == "mpi":
        return hvd
    import horovod.torch

    return horovod.torch
