"""What every exchange offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from hvd_sign.transports.base import Pending, Transport

if TYPE_CHECKING:
    from hvd_sign.ballots import Voter
    from hvd_sign.stepwise import StepwiseBox


class Exchange(ABC):
    """A way for ballots to meet; one object for each ballot box.

    Args:
        transport: connects the ranks.

    Attributes:
        shards: into how many shards a bucket is cut; each shard of a ballot is one message.
        ballots: how many ballots meet in a tally that decides.
        number: of this rank among those who send these ballots.
        senders: their ranks, for sentences.
        parity: whether this rank's zero coins are turned round, so that two ranks' zeros cancel.
    """

    name: ClassVar[str]

    def __init__(self, transport: Transport) -> None:
        self.shards = self.ballots = transport.size
        self.number = transport.rank
        self.senders: Sequence[int] = range(transport.size)
        self.parity = bool(transport.rank & 1)

    @abstractmethod
    def run(self, box: StepwiseBox, voters: Sequence[Voter], *, joined: bool) -> Iterator[Pending]:
        """Takes the box from the voters' signals to checked verdicts.

        Yields each communication that must have ended before it is resumed.
        """
