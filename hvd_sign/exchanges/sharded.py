"""All-to-all of ballot shards, a tally by each shard's owner, all-gather of the verdict.

Sends 2 (M-1)/M d/8 bytes a rank whatever the number M of voters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hvd_sign.exchanges.base import Exchange
from hvd_sign.transports.base import Pending

if TYPE_CHECKING:
    from hvd_sign.ballots import Voter
    from hvd_sign.stepwise import StepwiseBox


class Sharded(Exchange):
    """Each voter owns one shard of the coordinates."""

    name = "sharded"

    def run(self, box: StepwiseBox, voters: Sequence[Voter], *, joined: bool) -> Iterator[Pending]:
        """Two collectives, with the owner's tally between them."""
        box.cast(voters, joined=joined)
        yield box.transport.alltoall(box.ballots, box.received)
        box.tally(self.number)
        yield box.transport.allgather(box.verdict, box.verdicts)
        box.check_verdicts()
