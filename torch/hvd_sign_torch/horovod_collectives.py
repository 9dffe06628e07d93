"""Horovod's collectives on bytes, for votes that travel over them."""

from __future__ import annotations

from typing import Any

import horovod.torch as horovod
import numpy as np
import numpy.typing as npt
import torch
from horovod.torch import ProcessSet

from hvd_sign.transports.communication import ALLREDUCE, NOBODYS_SHAPE


class TorchCollectives:
    """``horovod.torch``'s alltoall and allgather of uint8, and sum of fp32, on one process set."""

    def __init__(self, process_set: ProcessSet) -> None:
        self._process_set = process_set

    def alltoall(self, send: npt.NDArray[np.uint8], name: str) -> Any:
        """Begins an all-to-all of equal parts."""
        tensor = torch.from_numpy(send)
        return horovod.alltoall_async(tensor, name=name, process_set=self._process_set)

    def allgather(self, send: npt.NDArray[np.uint8], name: str) -> Any:
        """Begins an all-gather."""
        tensor = torch.from_numpy(send)
        return horovod.allgather_async(tensor, name=name, process_set=self._process_set)

    def sum(self, send: npt.NDArray[np.floating[Any]], name: str) -> Any:
        """Begins an allreduce by sum."""
        tensor = torch.from_numpy(send)
        return horovod.allreduce_async(
            tensor, name=name, op=horovod.Sum, process_set=self._process_set
        )

    def clash(self, op: str, name: str) -> None:
        """Begins an allreduce of nobody's shape."""
        if op != ALLREDUCE:
            return
        tensor = torch.zeros(NOBODYS_SHAPE, dtype=torch.int32)
        horovod.allreduce_async_(tensor, name=name, op=horovod.Sum, process_set=self._process_set)

    def poll(self, handle: Any) -> bool:
        """Whether the operation has ended."""
        return bool(horovod.poll(handle))

    def result(self, handle: Any) -> npt.NDArray[Any]:
        """Waits for the operation; an all-to-all also returns how much came from whom."""
        output = horovod.synchronize(handle)
        tensor = output[0] if isinstance(output, tuple) else output
        array: npt.NDArray[Any] = tensor.numpy().reshape(-1)
        return array
