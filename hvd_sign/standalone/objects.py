"""Any picklable object as bytes, broadcast and gathered."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from hvd_sign.standalone.operations import AllGather, Broadcast
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.ranks import ask, ranks


def broadcast_object(
    value: Any,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """The object of one rank, on all of them. Blocks; collective over the process set.

    Args:
        value: picklable; only read on the root.
        root_rank: whose, among all ranks.
        name: of the operation.
        process_set: the ranks that take part.

    Raises:
        ValueError: the root is none of them.
    """
    communicator = ranks().communicator(process_set)
    root = place(root_rank, process_set)
    sends = communicator.Get_rank() == root
    packed = np.frombuffer(pickle.dumps(value), np.uint8) if sends else np.empty(0, np.uint8)
    name = name or "object"
    length = Broadcast(communicator, np.array([packed.size]), root)
    ask(length, f"{name}.length", process_set).wait()
    if not sends:
        packed = np.empty(int(length.result()[0]), np.uint8)
    content = Broadcast(communicator, packed, root)
    ask(content, f"{name}.content", process_set).wait()
    return value if sends else pickle.loads(content.result().tobytes())


def allgather_object(
    value: Any, name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[Any]:
    """Every rank's object, in order of ranks. Blocks; collective over the process set."""
    communicator = ranks().communicator(process_set)
    packed = np.frombuffer(pickle.dumps(value), np.uint8)
    name = name or "object"
    lengths = AllGather(communicator, np.array([packed.size]))
    ask(lengths, f"{name}.lengths", process_set).wait()
    content = AllGather(communicator, packed)
    ask(content, f"{name}.contents", process_set).wait()
    ends = np.cumsum(lengths.result())
    parts = np.split(content.result(), ends[:-1])
    return [pickle.loads(part.tobytes()) for part in parts]


def place(root_rank: int, process_set: ProcessSet) -> int:
    """The place of one of all ranks within a process set.

    Raises:
        ValueError: it is none of its ranks.
    """
    assert process_set.ranks is not None
    if root_rank not in process_set.ranks:
        raise ValueError(f"root_rank: expected one of {process_set.ranks}, got {root_rank}")
    return process_set.ranks.index(root_rank)
