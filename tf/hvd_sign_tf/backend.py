"""The backend of this binding, and the operations without a vote: Horovod's, or our MPI runtime's.

Attributes:
    horovod_api: ``horovod.tensorflow``, or ``hvd_sign_tf.mpi``, which has the same names.
    backend: its ranks, and the votes among them.
"""

from __future__ import annotations

import sys
from typing import Any

import tensorflow as tf

from hvd_sign_tf.require import BINDING

horovod_api = BINDING.horovod_api


def _collectives() -> Any:
    from hvd_sign_tf.horovod_collectives import TensorFlowCollectives

    return TensorFlowCollectives


def _gather(number: int) -> list[int]:
    # Without TensorFlow where that can be: programs choose its devices and threads after init(),
    # which has to be before its first operation.
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and mpi.COMM_WORLD.Get_size() == horovod_api.size():
        numbers = dict(mpi.COMM_WORLD.allgather((horovod_api.rank(), number)))
        return [numbers[rank] for rank in range(horovod_api.size())]
    # In a graph of its own, since the program may have switched eager mode off.
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session(config=v1.ConfigProto(device_count={"GPU": 0})) as run:
        mine = tf.constant([number], tf.int64)
        return [int(n) for n in run.run(horovod_api.allgather(mine, name="hvd_sign.mpi_ranks"))]


backend = BINDING.make_backend(_collectives, _gather)


def init(*args: Any, **kwargs: Any) -> None:
    """Starts the ranks and the vote; takes the arguments of Horovod's ``init``. Collective.

    Raises:
        RuntimeError: MPI cannot be used; the message says why and what helps.
    """
    backend.init(*args, **kwargs)
    BINDING.announce(backend)


shutdown = backend.shutdown
add_process_set = backend.add_process_set
remove_process_set = backend.remove_process_set


def join() -> int:
    """Serves the other ranks until all have joined: a joined rank abstains in every vote.

    Returns:
        The rank that joined last.
    """
    return backend.join()


def barrier(process_set: Any = horovod_api.global_process_set) -> None:
    """Waits until all ranks of a process set have come to it.

    Raises:
        RuntimeError: within a graph, which would not wait when it is built.
    """
    if not tf.executing_eagerly():
        raise RuntimeError("barrier: expected eager mode, got a graph or tf.function")
    arrived = tf.ones([1], tf.int32)
    horovod_api.allreduce(
        arrived, op=horovod_api.Sum, name="hvd_sign.barrier", process_set=process_set
    ).numpy()
