"""All-to-all of ballot shards, a tally by each shard's owner, all-gather of the verdict.

Sends 2 (M-1)/M d/8 bytes a rank whatever the number M of voters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hvd_sign.devices import Operand
from hvd_sign.exchanges.base import Exchange, Load, Round
from hvd_sign.transports.communication import Pending
from hvd_sign.transports.link import LinkModel, Parts


class Sharded(Exchange):
    """Each voter owns one shard of the coordinates."""

    name = "sharded"
    inline = True

    def run(self, vote: Round, operands: Sequence[Operand], *, joined: bool) -> Iterator[Pending]:
        """Two collectives, with the owner's tally between them."""
        vote.pack(operands, joined=joined)
        yield vote.transport.alltoall(vote.messages.ballots, vote.received)
        vote.decide(self.number)
        yield vote.transport.allgather(vote.verdict, vote.messages.verdicts)
        vote.check_verdicts()

    @classmethod
    def owners(cls, voters: int) -> list[list[int]]:
        """Each voter its own shard."""
        return [[voter] for voter in range(voters)]

    @classmethod
    def parts(cls, link: LinkModel, load: Load) -> Parts:
        """Every rank sends two messages to every other one, and tallies one ballot's worth."""
        others = load.voters - 1
        sent = 2 * others / load.voters * load.ballot
        kernels = load.ends(link) + load.ballot / link.tally
        return Parts(2 * others * link.latency, sent / link.bandwidth, kernels)
