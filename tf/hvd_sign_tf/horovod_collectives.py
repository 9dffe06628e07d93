"""Horovod's collectives on bytes, for votes that travel over them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import horovod.tensorflow as horovod
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from hvd_sign.transports.communication import ALLREDUCE, NOBODYS_SHAPE

MOST_UNDER_WAY = 256
"""Operations that wait for other ranks at once; each holds a thread that sleeps meanwhile."""

_threads = ThreadPoolExecutor(MOST_UNDER_WAY, thread_name_prefix="hvd_sign horovod")


class TensorFlowCollectives:
    """``horovod.tensorflow``'s alltoall and allgather of uint8, and sum of fp32.

    TensorFlow's operations block, so that each waits on a thread of its own.

    Args:
        process_set: the ranks that take part.
    """

    def __init__(self, process_set: Any) -> None:
        self._process_set = process_set

    def alltoall(self, send: npt.NDArray[np.uint8], name: str) -> Future[Any]:
        """Begins an all-to-all of equal parts."""
        return self._begin(horovod.alltoall, send, name=name)

    def allgather(self, send: npt.NDArray[np.uint8], name: str) -> Future[Any]:
        """Begins an all-gather."""
        return self._begin(horovod.allgather, send, name=name)

    def sum(self, send: npt.NDArray[np.floating[Any]], name: str) -> Future[Any]:
        """Begins an allreduce by sum."""
        return self._begin(horovod.allreduce, send, name=name, op=horovod.Sum)

    def clash(self, op: str, name: str) -> None:
        """Begins an allreduce of nobody's shape."""
        if op != ALLREDUCE:
            return
        self._begin(horovod.allreduce, np.zeros(NOBODYS_SHAPE, np.int32), name=name, op=horovod.Sum)

    def poll(self, handle: Future[Any]) -> bool:
        """Whether the operation has ended."""
        return handle.done()

    def result(self, handle: Future[Any]) -> npt.NDArray[Any]:
        """Waits for the operation; an all-to-all also returns how much came from whom."""
        output = handle.result()
        tensor = output[0] if isinstance(output, (tuple, list)) else output
        array: npt.NDArray[Any] = np.asarray(tensor).reshape(-1)
        return array

    def _begin(self, operation: Any, send: npt.NDArray[Any], **options: Any) -> Future[Any]:
        def run() -> Any:
            with tf.device("/cpu:0"):
                return operation(tf.constant(send), process_set=self._process_set, **options)

        return _threads.submit(run)
