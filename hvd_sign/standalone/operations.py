"""Horovod's collectives on numpy arrays, over MPI: what each is, once all ranks have asked for it.

Numbers that MPI knows no type for (fp16, bf16) are reduced in fp32.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hvd_sign.engine.operations import Operation
from hvd_sign.errors import OperationError, TensorError
from hvd_sign.standalone.reduce_op import ReduceOp, check_op, mpi_op
from hvd_sign.standalone.timeline import timeline
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Pending
from hvd_sign.transports.mpi import MpiRequest

if TYPE_CHECKING:
    from mpi4py import MPI

Array = npt.NDArray[Any]

HALVES = ("float16", "bfloat16")
MOST_ELEMENTS = 2**31 - 1
"""What MPI counts up to in one message; larger arrays are reduced and broadcast in pieces."""


class Collective(Operation):
    """A collective operation; ``result()`` is there once its handle is done.

    Args:
        communicator: the process set's own, on which the stream lets one call run at a time.

    Attributes:
        types: the element types as the framework calls them, where arrays stand for other ones.
    """

    types: Sequence[str] | None = None

    def __init__(self, communicator: MPI.Intracomm) -> None:
        self.communicator = communicator

    @abstractmethod
    def result(self) -> Any:
        """What the operation gives this rank."""

    def dtypes(self, *arrays: Array) -> str:
        """The arrays' element types, for a claim."""
        return ", ".join(self.types or [array.dtype.name for array in arrays])

    def steps(self, name: str, transport: Transport) -> Iterator[Pending]:
        """The operation on its own communicator, whatever the votes' transport."""
        begun = time.monotonic()
        yield from self.run()
        timeline.operation(self.kind, name, self.task.enqueued, begun, self.claim)

    @abstractmethod
    def run(self) -> Iterator[Pending]:
        """The operation."""


class AllReduce(Collective):
    """Reduces arrays over all ranks: float32[...], ... -> arrays of the same shapes and types.

    Args:
        communicator: as for all.
        arrays: reduced together; not modified.
        op: ``Average`` divides by the number of ranks; integers are rounded towards zero.
        prescale: multiplies before, postscale after.

    Raises:
        ValueError: ``op`` is Adasum, or the arrays' type cannot be reduced so.
    """

    kind = "allreduce"

    def __init__(
        self,
        communicator: MPI.Intracomm,
        arrays: Sequence[Array],
        op: ReduceOp,
        prescale: float = 1.0,
        postscale: float = 1.0,
    ) -> None:
        super().__init__(communicator)
        self.op = check_op(op)
        self.arrays = [np.ascontiguousarray(array).reshape(np.shape(array)) for array in arrays]
        for array in self.arrays:
            check_number(array)
        self.prescale, self.postscale = prescale, postscale
        self._results: list[Array] = []

    def claim(self) -> dict[str, Any]:
        """Operation, shapes, types and factors."""
        return {
            "op": self.op.name,
            "number of tensors": len(self.arrays),
            "dtype": self.dtypes(*self.arrays),
            "shape": ", ".join(str(array.shape) for array in self.arrays),
            "prescale_factor": self.prescale,
            "postscale_factor": self.postscale,
        }

    def run(self) -> Iterator[Pending]:
        """MPI_Iallreduce of each array."""
        for array in self.arrays:
            numbers = scaled(widened(array), self.prescale)
            reduced = np.empty_like(numbers)
            op = mpi_op(self.op, numbers)
            for sent, got in pieces(numbers, reduced):
                request = self.communicator.Iallreduce(sent, got, op)
                yield MpiRequest(request, sent, got)
            reduced = self.finished(reduced)
            self._results.append(reduced.astype(array.dtype, copy=False))

    def finished(self, reduced: Array) -> Array:
        """Reduced numbers divided, for a mean, and scaled; integers are rounded once."""
        mean = self.op is ReduceOp.Average
        size = self.communicator.Get_size() if mean else 1
        if mean and self.postscale == 1.0:
            return divided(reduced, size)
        return scaled(reduced, self.postscale / size)

    def result(self) -> list[Array]:
        """The reduced arrays."""
        return self._results


class ReduceScatter(Collective):
    """Reduces an array and gives each rank its share of the first dimension.

    [n, ...] -> [n / M or one more on the first n mod M ranks, ...], as Horovod's.
    """

    kind = "reducescatter"

    def __init__(
        self,
        communicator: MPI.Intracomm,
        array: Array,
        op: ReduceOp,
        prescale: float = 1.0,
        postscale: float = 1.0,
    ) -> None:
        super().__init__(communicator)
        self._whole = AllReduce(communicator, [array], op, prescale, postscale)
        if np.ndim(array) == 0:
            raise ValueError("tensor: expected at least one dimension to scatter, got a scalar")
        if self._whole.op not in (ReduceOp.Average, ReduceOp.Sum):
            raise OperationError(f"op: expected Average or Sum, got {self._whole.op.name}")

    def claim(self) -> dict[str, Any]:
        """As of an allreduce."""
        self._whole.types = self.types
        return self._whole.claim()

    def run(self) -> Iterator[Pending]:
        """MPI_Ireduce_scatter."""
        (array,) = self._whole.arrays
        size, rank = self.communicator.Get_size(), self.communicator.Get_rank()
        numbers = scaled(widened(array), self._whole.prescale)
        rows = [len(part) for part in np.array_split(np.arange(len(array)), size)]
        width = math.prod(array.shape[1:])
        share = np.empty((rows[rank], *array.shape[1:]), numbers.dtype)
        counts = [row * width for row in rows]
        request = self.communicator.Ireduce_scatter(
            numbers, share, counts, mpi_op(self._whole.op, numbers)
        )
        yield MpiRequest(request, numbers, share)
        self._share = self._whole.finished(share).astype(array.dtype, copy=False)

    def result(self) -> Array:
        """This rank's share."""
        return self._share


class AllGather(Collective):
    """Joins the ranks' arrays along the first dimension, in which they may differ."""

    kind = "allgather"

    def __init__(self, communicator: MPI.Intracomm, array: Array) -> None:
        super().__init__(communicator)
        self.array = as_items(array)
        if self.array.ndim == 0:
            raise ValueError("tensor: expected at least one dimension to gather, got a scalar")

    def claim(self) -> dict[str, Any]:
        """Type, and shape but for the first dimension."""
        return {"dtype": self.dtypes(self.array), "shape but for the first": self.array.shape[1:]}

    def run(self) -> Iterator[Pending]:
        """MPI_Iallgather of the lengths, then MPI_Iallgatherv of the bytes."""
        size = self.communicator.Get_size()
        mine = np.array([len(self.array)], np.int64)
        rows = np.empty(size, np.int64)
        yield MpiRequest(self.communicator.Iallgather(mine, rows), mine, rows)
        width = math.prod(self.array.shape[1:]) * self.array.itemsize
        joined = np.empty((int(rows.sum()), *self.array.shape[1:]), self.array.dtype)
        received = as_bytes(joined)
        counts = rows * width
        check_count(counts.sum())
        request = self.communicator.Iallgatherv(as_bytes(self.array), (received, counts.tolist()))
        yield MpiRequest(request, self.array, joined)
        self._joined = joined

    def result(self) -> Array:
        """All arrays, in order of ranks."""
        return self._joined


class Broadcast(Collective):
    """Gives every rank the array of one.

    Raises:
        ValueError: ``root`` is no rank of the communicator.
    """

    kind = "broadcast"

    def __init__(self, communicator: MPI.Intracomm, array: Array, root: int) -> None:
        super().__init__(communicator)
        size = communicator.Get_size()
        if not 0 <= root < size:
            raise ValueError(f"root_rank: expected 0 to {size - 1}, got {root}")
        self.root = root
        self._array = as_items(array).copy()

    def claim(self) -> dict[str, Any]:
        """Root, shape and type."""
        return {
            "root_rank": self.root,
            "dtype": self.dtypes(self._array),
            "shape": self._array.shape,
        }

    def run(self) -> Iterator[Pending]:
        """MPI_Ibcast of the bytes."""
        flat = as_bytes(self._array)
        for start in range(0, flat.size, MOST_ELEMENTS):
            piece = flat[start : start + MOST_ELEMENTS]
            yield MpiRequest(self.communicator.Ibcast(piece, self.root), piece)

    def result(self) -> Array:
        """The root's array."""
        return self._array


class AllToAll(Collective):
    """Sends rows of an array to each rank and joins what comes.

    Args:
        communicator: as for all.
        array: [n, ...].
        splits: how many rows go to each rank, as whole numbers; None: equal parts.

    Raises:
        ValueError: the rows cannot be split so.
    """

    kind = "alltoall"

    def __init__(
        self, communicator: MPI.Intracomm, array: Array, splits: Sequence[float] | None = None
    ) -> None:
        super().__init__(communicator)
        self.array = as_items(array)
        size = communicator.Get_size()
        if self.array.ndim == 0:
            raise ValueError("tensor: expected at least one dimension to split, got a scalar")
        rows = len(self.array)
        if splits is None:
            if rows % size:
                raise ValueError(
                    f"splits: without them the first dimension must be a multiple of {size} ranks, "
                    f"got {rows}"
                )
            splits = [rows // size] * size
        given = np.asarray(splits)
        if not (
            given.shape == (size,)
            and given.dtype.kind in "iuf"
            and all(number >= 0 and number % 1 == 0 for number in given)
            and given.sum() == rows
        ):
            raise ValueError(
                f"splits: expected {size} numbers of rows that add up to {rows}, got {splits}"
            )
        self.splits = given.astype(np.int64)

    def claim(self) -> dict[str, Any]:
        """Type, and shape but for the first dimension."""
        return {"dtype": self.dtypes(self.array), "shape but for the first": self.array.shape[1:]}

    def run(self) -> Iterator[Pending]:
        """MPI_Ialltoall of the numbers of rows, then MPI_Ialltoallv of the bytes."""
        rows = np.empty_like(self.splits)
        yield MpiRequest(self.communicator.Ialltoall(self.splits, rows), self.splits, rows)
        width = math.prod(self.array.shape[1:]) * self.array.itemsize
        received = np.empty((int(rows.sum()), *self.array.shape[1:]), self.array.dtype)
        for counts in (self.splits * width, rows * width):
            check_count(counts.sum())
        request = self.communicator.Ialltoallv(
            (as_bytes(self.array), (self.splits * width).tolist()),
            (as_bytes(received), (rows * width).tolist()),
        )
        yield MpiRequest(request, self.array, received)
        self._result = received, rows.astype(np.int32)

    def result(self) -> tuple[Array, Array]:
        """What came, in order of ranks, and how many rows from each: int32[M]."""
        return self._result


class Barrier(Collective):
    """Ends when all ranks have come."""

    kind = "barrier"

    def claim(self) -> dict[str, Any]:
        """Nothing: that all have asked is all there is to it."""
        return {}

    def run(self) -> Iterator[Pending]:
        """The agreement was the barrier."""
        return iter(())

    def result(self) -> None:
        """Nothing."""


def check_number(array: Array) -> None:
    """Raises TensorError if no arithmetic is known for the array's type."""
    if array.dtype.name not in HALVES and array.dtype.kind not in "biuf":
        raise TensorError(f"tensor: expected numbers, got {array.dtype.name}")


def as_items(array: Array) -> Array:
    """A contiguous array. Raises TensorError: its items are no bytes, but references."""
    if np.asarray(array).dtype.hasobject:
        raise TensorError(f"tensor: expected numbers or booleans, got {np.asarray(array).dtype}")
    return np.ascontiguousarray(array).reshape(np.shape(array))


def check_count(count: int) -> None:
    """Raises ValueError if one message cannot hold so many bytes."""
    if count > MOST_ELEMENTS:
        raise ValueError(f"tensor: expected less than 2 GiB from all ranks together, got {count}")


def widened(array: Array) -> Array:
    """The array in a type that MPI can reduce."""
    return array.astype(np.float32) if array.dtype.name in HALVES else array


def scaled(numbers: Array, factor: float) -> Array:
    """Numbers times a factor, in their own type; integers are rounded towards zero."""
    if factor == 1.0 or numbers.dtype == bool:
        return numbers
    return (numbers * factor).astype(numbers.dtype, copy=False)


def divided(numbers: Array, count: int) -> Array:
    """Numbers divided by a count; integers exactly, and rounded towards zero."""
    if numbers.dtype.kind in "iu":
        quotients: Array = numbers // numbers.dtype.type(count)
        quotients += (numbers < 0) & (numbers % numbers.dtype.type(count) != 0)
        return quotients
    return scaled(numbers, 1 / count)


def as_bytes(array: Array) -> npt.NDArray[np.uint8]:
    """A contiguous array's bytes."""
    return array.reshape(-1).view(np.uint8)


def pieces(sent: Array, got: Array) -> Iterator[tuple[Array, Array]]:
    """Both arrays flat, in pieces that MPI can count."""
    flat, into = sent.reshape(-1), got.reshape(-1)
    for start in range(0, flat.size, MOST_ELEMENTS):
        yield flat[start : start + MOST_ELEMENTS], into[start : start + MOST_ELEMENTS]
