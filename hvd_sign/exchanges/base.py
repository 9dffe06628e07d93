"""What every exchange offers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from hvd_sign.transports.base import Pending

if TYPE_CHECKING:
    from hvd_sign.stepwise import StepwiseBox


class Exchange(Protocol):
    """A way for ballots to meet."""

    name: str

    def shards(self, voters: int) -> int:
        """Into how many shards a bucket is cut; each shard of a ballot is one message."""
        ...

    def run(self, box: StepwiseBox) -> Iterator[Pending]:
        """Takes the box from sealed ballots to checked verdicts.

        Yields each communication that must have ended before it is resumed.
        """
        ...
