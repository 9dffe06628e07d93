"""A transport: MPI's messages between pairs alone, one tag, and no collective."""

from __future__ import annotations

from typing import Any

import numpy as np

from hvd_sign.transports import Pending, Transport
from hvd_sign.transports.communication import Together
from hvd_sign.transports.mpi import MpiMailbox, MpiRequest


class Letters(Transport):
    """All-to-all and all-gather by sends and receives; counts how many it began."""

    relays = True

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator.Dup()
        self.rank = communicator.Get_rank()
        self.size = communicator.Get_size()
        self.begun = 0

    def alltoall(self, send: Any, recv: Any) -> Pending:
        return self._swap(send.reshape(self.size, -1), recv.reshape(self.size, -1))

    def allgather(self, send: Any, recv: Any) -> Pending:
        return self._swap([send] * self.size, recv.reshape(self.size, -1))

    def sum(self, send: Any, recv: Any) -> Pending:
        self._communicator.Allreduce(send, recv)
        return Together([])

    def gather_objects(self, value: Any) -> list[Any]:
        return list(self._communicator.allgather(value))

    def mailbox(self, tag: int = 1) -> MpiMailbox:
        return MpiMailbox(self._communicator, 10 + tag)

    def close(self, *, release: bool) -> None:
        if release:
            self._communicator.Free()

    def _swap(self, out: Any, into: Any) -> Pending:
        self.begun += 1
        np.copyto(into[self.rank], out[self.rank])
        others = [voter for voter in range(self.size) if voter != self.rank]
        comm = self._communicator
        received = [MpiRequest(comm.Irecv(into[voter], voter), into) for voter in others]
        sent = [MpiRequest(comm.Isend(np.ascontiguousarray(out[v]), v), out) for v in others]
        return Together([*received, *sent])
