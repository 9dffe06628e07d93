"""What an allreduce does: Horovod's operations, and MPI's in their place."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from hvd_sign.errors import OperationError

if TYPE_CHECKING:
    from mpi4py import MPI


class ReduceOp(IntEnum):
    """What an allreduce does; numbered as in Horovod."""

    Average = 0
    Sum = 1
    Adasum = 2
    Min = 3
    Max = 4
    Product = 5


NAMES_IN_MPI = {
    ReduceOp.Average: "SUM",
    ReduceOp.Sum: "SUM",
    ReduceOp.Min: "MIN",
    ReduceOp.Max: "MAX",
    ReduceOp.Product: "PROD",
}
NAMES_FOR_BOOLEANS = {"SUM": "LOR", "MAX": "LOR", "MIN": "LAND", "PROD": "LAND"}


def check_op(op: Any) -> ReduceOp:
    """The operation of a number of Horovod's. Raises OperationError: there is none, or Adasum."""
    try:
        found = ReduceOp(op)
    except ValueError as error:
        known = ", ".join(known.name for known in ReduceOp)
        raise OperationError(f"op: expected one of {known} or a vote, got {op!r}") from error
    if found is ReduceOp.Adasum:
        raise OperationError(
            "op: Adasum needs Horovod itself; over MPI alone take Average or a vote"
        )
    return found


def op_or_average(op: Any, average: bool | None) -> Any:
    """The operation that ``op`` and the older ``average`` ask for; of neither, ``Average``.

    Raises:
        ValueError: both are given.
    """
    if op is not None and average is not None:
        raise ValueError("average: not allowed together with op, which takes its place")
    if op is not None:
        return op
    return ReduceOp.Sum if average is False else ReduceOp.Average


def mpi_op(op: ReduceOp, numbers: npt.NDArray[Any]) -> MPI.Op:
    """MPI's operation; of booleans, `or` and `and`."""
    from mpi4py import MPI

    name = NAMES_IN_MPI[op]
    found: MPI.Op = getattr(MPI, NAMES_FOR_BOOLEANS[name] if numbers.dtype == bool else name)
    return found
