"""Everyone gets every ballot and tallies alone.

Trusts nobody; best for small buckets and few voters. Sends (M-1) d/8 bytes a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hvd_sign.exchanges.base import Exchange
from hvd_sign.transports.base import Pending, Transport

if TYPE_CHECKING:
    from hvd_sign.ballots import Voter
    from hvd_sign.stepwise import StepwiseBox


class AllGather(Exchange):
    """One shard, owned by all."""

    name = "allgather"

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.shards = 1

    def run(self, box: StepwiseBox, voters: Sequence[Voter], *, joined: bool) -> Iterator[Pending]:
        """One collective, then every voter's own tally."""
        box.cast(voters, joined=joined)
        yield box.transport.allgather(box.ballots, box.received)
        box.tally(0)
        box.verdicts[:] = box.verdict
