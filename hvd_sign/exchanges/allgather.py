"""Everyone gets every ballot and tallies alone.

Trusts nobody; best for small buckets and few voters. Sends (M-1) d/8 bytes a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hvd_sign.devices import Operand
from hvd_sign.exchanges.base import Exchange, Load, Round
from hvd_sign.transports.communication import Pending
from hvd_sign.transports.link import LinkModel, Parts


class AllGather(Exchange):
    """One shard, owned by all."""

    name = "allgather"

    def run(self, vote: Round, operands: Sequence[Operand], *, joined: bool) -> Iterator[Pending]:
        """One collective, then every voter's own tally."""
        vote.pack(operands, joined=joined)
        yield vote.transport.allgather(vote.messages.ballots, vote.received)
        vote.decide(0)
        vote.messages.verdicts[:] = vote.verdict
        vote.check_verdicts([vote.transport.rank])

    @classmethod
    def owners(cls, voters: int) -> list[list[int]]:
        """All voters the only shard."""
        return [list(range(voters))]

    @classmethod
    def parts(cls, link: LinkModel, load: Load) -> Parts:
        """Every rank sends its ballot to every other one, and tallies them all."""
        others = load.voters - 1
        kernels = load.ends(link) + load.voters * load.ballot / link.tally
        return Parts(others * link.latency, others * load.ballot / link.bandwidth, kernels)
