"""Everyone gets every ballot and tallies alone.

Trusts nobody; best for small buckets and few voters. Sends (M-1) d/8 bytes a rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hvd_sign.transports.base import Pending

if TYPE_CHECKING:
    from hvd_sign.stepwise import StepwiseBox


class AllGather:
    """One shard, owned by all."""

    name = "allgather"

    def shards(self, voters: int) -> int:
        """A single one."""
        return 1

    def run(self, box: StepwiseBox) -> Iterator[Pending]:
        """One collective, then every voter's own tally."""
        yield box.transport.allgather(box.ballots, box.received)
        box.tally(0)
        box.verdicts[:] = box.verdict
