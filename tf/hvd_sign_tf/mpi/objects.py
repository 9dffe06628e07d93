"""Any picklable object, broadcast and gathered, by Horovod's signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvd_sign.standalone import objects
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign_tf.errors import told_as_horovod


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    session: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """The object of one rank, on all of them. Blocks; collective over the process set.

    Args:
        obj: picklable; only read on the root.
        root_rank: whose, among all ranks.
        session: without effect; TensorFlow 1 needs one.
        name: of the call.
        process_set: the ranks that take part.

    Raises:
        ValueError: the root is none of them.
        TypeError: pickle cannot copy it; ValueError on the other ranks.
    """
    with told_as_horovod():
        return objects.broadcast_object(obj, root_rank, name, process_set)


def broadcast_object_fn(
    root_rank: int = 0,
    session: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Callable[[Any], Any]:
    """``broadcast_object`` as a function of the object alone."""
    return lambda obj: broadcast_object(obj, root_rank, session, name, process_set)


def allgather_object(
    obj: Any,
    session: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> list[Any]:
    """Every rank's object, in order of ranks. Blocks; collective over the process set.

    Args:
        obj: picklable.
        session: without effect; TensorFlow 1 needs one.
        name: of the call.
        process_set: the ranks that take part.

    Raises:
        TypeError: pickle cannot copy it; ValueError on the other ranks.
    """
    with told_as_horovod():
        return objects.allgather_object(obj, name, process_set)
