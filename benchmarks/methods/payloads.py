"""What each method sends, by formula: bytes of a worker in one exchange of all gradients.

A formula is a function of (workers M, shapes of the gradients). Where a method works bucket by
bucket (DDP, the baselines), all gradients are taken for one bucket: rounding in each of them, a few
bytes, is left out. Headers of TCP and Ethernet are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Shapes = Sequence[Sequence[int]]
Payload = Callable[[int, Shapes], float]

QSGD_BLOCK = 512  # coordinates that share a norm
TOP_SHARE = 0.01  # of the coordinates, that top-k sends


def coordinates(shapes: Shapes) -> int:
    """How many coordinates tensors of these shapes have."""
    return sum(math.prod(shape) for shape in shapes)


def ring(width: int) -> Payload:
    """A ring allreduce of values `width` bytes wide: 2 (M-1)/M d width.

    It is the least that any allreduce sends per worker (Patarasuk and Yuan 2009).
    """
    return lambda workers, shapes: 2 * (workers - 1) / workers * coordinates(shapes) * width


def powersgd(rank: int) -> Payload:
    """PowerSGD (Vogels et al. 2019, arXiv 1905.13727) as torch.distributed has it.

    A tensor is a matrix of n = shape[0] rows and m columns. Its two fp32 factors, (n + m) rank
    values, are averaged by ring allreduces; vectors, and matrices of fewer than 2 (n + m) rank
    values, as they are.
    """

    def values(shape: Sequence[int]) -> int:
        whole = math.prod(shape)
        rows = shape[0] if shape else 1
        columns = whole // max(1, rows)
        factors = (rows + columns) * min(rows, columns, rank)
        return factors if 2 * factors < whole else whole

    return lambda workers, shapes: ring(4)(workers, [(values(shape),) for shape in shapes])


def allgather(message: Callable[[int], int]) -> Payload:
    """Everyone gets everyone's message: (M-1) message(d)."""
    return lambda workers, shapes: (workers - 1) * message(coordinates(shapes))


def qsgd_message(d: int) -> int:
    """An fp32 norm of each block of 512 coordinates, and a byte a coordinate."""
    return 4 * -(-d // QSGD_BLOCK) + d


def top_count(d: int) -> int:
    """How many coordinates top-k sends: one in a hundred, at least one."""
    return max(1, int(TOP_SHARE * d))


def top_message(d: int) -> int:
    """An int32 position and an fp32 value for each coordinate that is sent."""
    return 8 * top_count(d)


def sign_bytes_message(d: int) -> int:
    """A byte a coordinate."""
    return d


def onebit_message(d: int) -> int:
    """An fp32 scale, and a bit a coordinate."""
    return 4 + -(-d // 8)
