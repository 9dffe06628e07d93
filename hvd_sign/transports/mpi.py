"""The transport over MPI, by mpi4py's non-blocking collectives on a communicator of our own."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any
from zlib import crc32

from hvd_sign.core.stats import recorder
from hvd_sign.errors import VoteError
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Buffer, Floats, Pending
from hvd_sign.transports.nodes import Nodes, names_of_nodes

if TYPE_CHECKING:
    from mpi4py import MPI


class MpiRequest:
    """An MPI request, and the buffers that it must keep alive."""

    def __init__(self, request: MPI.Request, *buffers: Any) -> None:
        self._request = request
        self._buffers = buffers
        self.ended = False

    def test(self) -> bool:
        """Whether it has ended; makes progress, never blocks."""
        self.ended = self.ended or bool(self._request.Test())
        return self.ended


_abandoned: list[list[MpiRequest]] = []
"""Requests that nobody waits for any more: their buffers are kept until the process ends."""


CHECKSUM_BYTES = 4

PAIRS = 3
"""The tag of messages between pairs of voters."""


class MpiTransport(Transport):
    """Messages over a communicator that nobody else uses. Making one is collective over it.

    Args:
        communicator: private to this transport, which frees it at ``close()``.
    """

    def __init__(self, communicator: MPI.Intracomm) -> None:
        self.communicator = communicator
        self._requests: list[MpiRequest] = []
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self.pairs = self
        self.nodes = Nodes(names_of_nodes(communicator), self.rank, self)

    def alltoall(self, send: Buffer, recv: Buffer) -> Pending:
        """MPI_Ialltoall of equal parts."""
        recorder.add(payload_bytes=send.nbytes // self.size * (self.size - 1))
        return self._begin(MpiRequest(self.communicator.Ialltoall(send, recv), send, recv))

    def allgather(self, send: Buffer, recv: Buffer) -> Pending:
        """MPI_Iallgather."""
        recorder.add(payload_bytes=send.nbytes * (self.size - 1))
        return self._begin(MpiRequest(self.communicator.Iallgather(send, recv), send, recv))

    def sum(self, send: Floats, recv: Floats) -> Pending:
        """MPI_Iallreduce, which counts as a ring's bytes."""
        recorder.add(payload_bytes=2 * send.nbytes // self.size * (self.size - 1))
        return self._begin(MpiRequest(self.communicator.Iallreduce(send, recv), send, recv))

    def send(self, buffer: Buffer, voter: int) -> Pending:
        """MPI_Isend."""
        recorder.add(payload_bytes=buffer.nbytes)
        return self._begin(MpiRequest(self.communicator.Isend(buffer, voter, PAIRS), buffer))

    def receive(self, buffer: Buffer, voter: int) -> Pending:
        """MPI_Irecv."""
        return self._begin(MpiRequest(self.communicator.Irecv(buffer, voter, PAIRS), buffer))

    def _begin(self, request: MpiRequest) -> MpiRequest:
        self._requests = [earlier for earlier in self._requests if not earlier.ended]
        self._requests.append(request)
        return request

    def gather_objects(self, value: Any) -> list[Any]:
        """MPI_Allgather of pickled objects."""
        return list(self.communicator.allgather(value))

    def mailbox(self, tag: int = 1) -> MpiMailbox:
        """Small messages between pairs of voters, beside the collectives and other tags."""
        return MpiMailbox(self.communicator, tag)

    def close(self, *, release: bool) -> None:
        """Ends the native stream; frees the communicators if nothing is under way."""
        if self.native is not None:
            self.native.close(release=release)
        if release:
            self.communicator.Free()
        else:
            _abandoned.append(self._requests)


class MpiMailbox:
    """Small pickled messages between pairs of voters; keeps their order, never blocks.

    A checksum comes first: what was damaged on its way is not unpickled.
    """

    def __init__(self, communicator: MPI.Intracomm, tag: int) -> None:
        self._communicator = communicator
        self._tag = tag
        self._sending: list[MPI.Request] = []

    def send(self, message: Any, voter: int) -> None:
        """Starts sending ``message`` to ``voter``."""
        self.sent()  # lets go of earlier ones
        body = pickle.dumps(message)
        sealed = crc32(body).to_bytes(CHECKSUM_BYTES, "little") + body
        self._sending.append(self._communicator.Isend(sealed, voter, self._tag))

    def sent(self) -> bool:
        """Whether all messages are on their way."""
        self._sending = [request for request in self._sending if not request.Test()]
        return not self._sending

    def receive(self) -> list[Any]:
        """All messages that have come since the last call.

        Raises:
            VoteError: one is damaged.
        """
        from mpi4py import MPI

        self.sent()  # makes progress
        messages = []
        status = MPI.Status()
        while (found := self._communicator.Improbe(tag=self._tag, status=status)) is not None:
            sealed = bytearray(status.Get_count(MPI.BYTE))
            found.Recv(sealed)
            messages.append(_opened(sealed, status.Get_source()))
        return messages


def _opened(sealed: bytearray, voter: int) -> Any:
    stated, body = sealed[:CHECKSUM_BYTES], sealed[CHECKSUM_BYTES:]
    found = crc32(body).to_bytes(CHECKSUM_BYTES, "little")
    if stated != found:
        raise VoteError(
            f"a small message from rank {voter} is damaged: expected checksum "
            f"0x{stated[::-1].hex()}, got 0x{found[::-1].hex()} of its {len(body)} bytes"
        )
    return pickle.loads(body)
