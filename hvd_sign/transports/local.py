"""The transport of a lone voter: no MPI, nothing sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hvd_sign.transports.base import Buffer, Floats, Pending
from hvd_sign.transports.nodes import Nodes

if TYPE_CHECKING:
    from hvd_sign.link import LinkModel


class _Done:
    def test(self) -> bool:
        return True


class _Nobody:
    def send(self, buffer: Buffer, voter: int) -> Pending:
        raise ValueError(f"voter: a lone voter knows no other, got {voter}")

    receive = send


class LocalTransport:
    """One voter, whose ballot is the verdict."""

    rank = 0
    size = 1
    link: LinkModel | None = None

    def __init__(self) -> None:
        self.nodes: Nodes | None = Nodes(["here"], 0, _Nobody())

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

    def close(self, *, release: bool) -> None:
        """Holds nothing."""
