"""The transport over Horovod's own collectives: for jobs without MPI, and wherever Horovod runs.

Every operation carries a name of ours. Horovod matches operations by name, so votes need no order
among themselves. They do take Horovod's handles, after which a framework's binding may name what a
user leaves unnamed: our bindings name it otherwise meanwhile.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from hvd_sign.core.stats import recorder
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Buffer, Floats, NamedCollectives, Pending


class _HorovodOperation:
    """A Horovod operation, whose result is copied to where it belongs once it is there."""

    def __init__(self, collectives: NamedCollectives, handle: Any, send: Any, recv: Any) -> None:
        self._collectives = collectives
        self._handle = handle
        self._send = send  # kept alive
        self._recv = recv

    def test(self) -> bool:
        if not self._collectives.poll(self._handle):
            return False
        self._recv[:] = self._collectives.result(self._handle)
        return True


class HorovodTransport(Transport):
    """Messages as Horovod operations.

    Args:
        collectives: of the process set.
        rank: this rank's number in the process set.
        size: of the process set.
        prefix: begins the names of all operations; the same on all ranks, and no other's.
    """

    serves_joined = False

    def __init__(self, collectives: NamedCollectives, rank: int, size: int, prefix: str) -> None:
        self.collectives: NamedCollectives = collectives
        self.rank = rank
        self.size = size
        self.prefix = prefix
        self._count = 0

    def alltoall(self, send: Buffer, recv: Buffer) -> Pending:
        """A named Horovod alltoall."""
        recorder.add(payload_bytes=send.nbytes // self.size * (self.size - 1))
        handle = self.collectives.alltoall(send, self._name())
        return _HorovodOperation(self.collectives, handle, send, recv)

    def allgather(self, send: Buffer, recv: Buffer) -> Pending:
        """A named Horovod allgather."""
        recorder.add(payload_bytes=send.nbytes * (self.size - 1))
        handle = self.collectives.allgather(send, self._name())
        return _HorovodOperation(self.collectives, handle, send, recv)

    def sum(self, send: Floats, recv: Floats) -> Pending:
        """A named Horovod allreduce, which counts as a ring's bytes."""
        recorder.add(payload_bytes=2 * send.nbytes // self.size * (self.size - 1))
        handle = self.collectives.sum(send, self._name())
        return _HorovodOperation(self.collectives, handle, send, recv)

    def gather_objects(self, value: Any) -> list[Any]:
        """Two named Horovod allgathers: of lengths, and of pickled objects."""
        packed = np.frombuffer(bytearray(pickle.dumps(value)), np.uint8)
        length = np.array([packed.size], np.int64).view(np.uint8)
        lengths = self._wait(self.collectives.allgather(length, self._name())).view(np.int64)
        joined = self._wait(self.collectives.allgather(packed, self._name()))
        ends = np.cumsum(lengths)
        return [
            pickle.loads(joined[end - size : end].tobytes())
            for end, size in zip(ends, lengths, strict=True)
        ]

    def named(self, name: str) -> HorovodTransport:
        """One whose operations begin with its prefix and that name."""
        prefix = f"{self.prefix}.{name}"
        return HorovodTransport(self.collectives, self.rank, self.size, prefix)

    def _wait(self, handle: Any) -> Buffer:
        result: Buffer = self.collectives.result(handle)
        return result.copy()

    def _name(self) -> str:
        self._count += 1
        return f"{self.prefix}.{self._count}"
