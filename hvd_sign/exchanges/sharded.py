"""All-to-all of ballot shards, a tally by each shard's owner, all-gather of the verdict.

Sends 2 (M-1)/M d/8 bytes a rank whatever the number M of voters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hvd_sign.transports.base import Pending

if TYPE_CHECKING:
    from hvd_sign.stepwise import StepwiseBox


class Sharded:
    """Each voter owns one shard of the coordinates."""

    name = "sharded"

    def shards(self, voters: int) -> int:
        """One a voter."""
        return voters

    def run(self, box: StepwiseBox) -> Iterator[Pending]:
        """Two collectives, with the owner's tally between them."""
        owned = box.transport.rank
        yield box.transport.alltoall(box.ballots, box.received)
        box.tally(owned)
        yield box.transport.allgather(box.verdict, box.verdicts)
        box.check_verdicts()
