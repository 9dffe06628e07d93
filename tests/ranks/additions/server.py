"""An exchange: one rank tallies everything, as the parameter server of the papers does."""

from __future__ import annotations

from hvd_sign.exchanges import Exchange, Load
from hvd_sign.transports.link import LinkModel, Parts


class Server(Exchange):
    """Voter 0 owns the only shard."""

    name = "test server"

    @classmethod
    def owners(cls, voters: int) -> list[list[int]]:
        return [[0]]

    @classmethod
    def parts(cls, link: LinkModel, load: Load) -> Parts:
        others = load.voters - 1
        sent = others * load.ballot  # of the server, which sends the verdict to everyone
        kernels = load.ends(link) + load.voters * load.ballot / link.tally
        return Parts(2 * link.latency, sent / link.bandwidth, kernels)
