"""The transport of a lone voter: no MPI, nothing sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hvd_sign.transports.base import Buffer, Pending

if TYPE_CHECKING:
    from hvd_sign.link import LinkModel


class _Done:
    def test(self) -> bool:
        return True


class LocalTransport:
    """One voter, whose ballot is the verdict."""

    rank = 0
    size = 1
    link: LinkModel | None = None

    def alltoall(self, send: Buffer, recv: Buffer) -> Pending:
        """Copies ``send`` to ``recv``."""
        recv[:] = send
        return _Done()

    def allgather(self, send: Buffer, recv: Buffer) -> Pending:
        """Copies ``send`` to ``recv``."""
        recv[:] = send
        return _Done()

    def gather_objects(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def close(self, *, release: bool) -> None:
        """Holds nothing."""
