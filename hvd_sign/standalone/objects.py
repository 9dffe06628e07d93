"""Any picklable object as bytes, broadcast and gathered."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hvd_sign.standalone.operations import AllGather, Array, Broadcast, Collective
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.ranks import enqueue, ranks

if TYPE_CHECKING:
    from mpi4py import MPI


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """The object of one rank, on all of them. Blocks; collective over the process set.

    Args:
        obj: picklable; only read on the root.
        root_rank: whose, among all ranks.
        name: of the operation.
        process_set: the ranks that take part.

    Raises:
        ValueError: the root is none of them.
        TypeError: pickle cannot copy it; ValueError on the other ranks.
    """
    sends = ranks().rank == root_rank
    name = name or "object"
    first = f"{name}.length"
    packed = _pack(obj, Broadcast, first, process_set) if sends else np.empty(0, np.uint8)
    length = _broadcast(np.array([packed.size]), root_rank, first, process_set)
    if not sends:
        packed = np.empty(int(length[0]), np.uint8)
    content = _broadcast(packed, root_rank, f"{name}.content", process_set)
    return obj if sends else pickle.loads(content.tobytes())


def _broadcast(array: Array, root_rank: int, name: str, process_set: ProcessSet) -> Array:
    def make(communicator: MPI.Intracomm) -> Broadcast:
        return Broadcast(communicator, array, place(root_rank, process_set))

    received: Array = enqueue(Broadcast, make, name, process_set).result()
    return received


def allgather_object(
    obj: Any, name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[Any]:
    """Every rank's object, in order of ranks. Blocks; collective over the process set.

    Raises:
        TypeError: pickle cannot copy it; ValueError on the other ranks.
    """
    name = name or "object"
    first = f"{name}.lengths"
    packed = _pack(obj, AllGather, first, process_set)
    lengths = _gather(np.array([packed.size]), first, process_set)
    content = _gather(packed, f"{name}.contents", process_set)
    ends = np.cumsum(lengths)
    parts = np.split(content, ends[:-1])
    return [pickle.loads(part.tobytes()) for part in parts]


def _pack(
    value: Any, kind: type[Collective], name: str, process_set: ProcessSet
) -> npt.NDArray[np.uint8]:
    """The bytes of an object; if there are none, the other ranks' calls of that name end too."""
    with ranks().stream(process_set).refusing(kind.kind, name):
        try:
            return np.frombuffer(pickle.dumps(value), np.uint8)
        except Exception as error:  # a __reduce__ may raise anything
            found = type(value).__name__
            raise TypeError(f"obj: pickle cannot copy this {found}: {error}") from error


def _gather(array: Array, name: str, process_set: ProcessSet) -> Array:
    made = enqueue(
        AllGather, lambda communicator: AllGather(communicator, array), name, process_set
    )
    gathered: Array = made.result()
    return gathered


def place(root_rank: int, process_set: ProcessSet) -> int:
    """The place of one of all ranks within a process set.

    Raises:
        ValueError: it is none of its ranks.
    """
    members = process_set.members()
    if root_rank not in members:
        raise ValueError(f"root_rank: expected one of {members}, got {root_rank}")
    return members.index(root_rank)
