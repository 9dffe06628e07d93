"""The transport of a lone voter: no MPI, nothing sent."""

from __future__ import annotations

from typing import Any

from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Buffer, Floats, Pending
from hvd_sign.transports.nodes import Nodes


class _Done:
    def test(self) -> bool:
        return True


class _Nobody:
    def send(self, buffer: Buffer, voter: int) -> Pending:
        raise ValueError(f"voter: a lone voter knows no other, got {voter}")

    receive = send


class LocalTransport(Transport):
    """One voter, whose ballot is the verdict."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.nodes = Nodes(["here"], 0, _Nobody())

    def alltoall(self, send: Buffer, recv: Buffer) -> Pending:
        """Copies ``send`` to ``recv``."""
        recv[:] = send
        return _Done()

    def allgather(self, send: Buffer, recv: Buffer) -> Pending:
        """Copies ``send`` to ``recv``."""
        recv[:] = send
        return _Done()

    def sum(self, send: Floats, recv: Floats) -> Pending:
        """Copies ``send`` to ``recv``."""
        recv[:] = send
        return _Done()

    def gather_objects(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]
