"""A vote so small that ballots travel with the ranks' agreement to hold it.

One message to voter 0, which tallies, and one back, instead of an exchange after the agreement.
The verdict is that of every exchange in which each rank counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hvd_sign.core.options import AUTO, VoteOptions
from hvd_sign.core.stats import recorder
from hvd_sign.devices import Operand
from hvd_sign.exchanges import AllGather, get_exchange
from hvd_sign.rounds.reference import ReferenceRound
from hvd_sign.transports.communication import Pending

MOST_BLOCKS = 256
"""Blocks of 64 coordinates in an inline vote: its messages are of 4 KiB at most, which take hardly
longer than empty ones."""


def fits_inline(blocks: int, options: VoteOptions) -> bool:
    """Whether a vote may be tallied by voter 0 alone, and is small enough."""
    if options.exchange == AUTO:
        trusting = options.fallback is None
    else:
        trusting = get_exchange(options.exchange).inline
    return trusting and blocks <= MOST_BLOCKS


def inline_options(options: VoteOptions) -> VoteOptions:
    """The options of an inline vote's round: one shard, and a ballot from every rank."""
    return replace(options, exchange=AllGather.name, local="vote")


class PendingVerdict:
    """A ballot on its way to voter 0, and the verdict that comes back.

    Attributes:
        ballot: one message.
        answered: by voter 0.
        verdict: one message; None until it has come, and where the ballots were not counted.
    """

    def __init__(self, ballot: bytes) -> None:
        self.ballot = ballot
        self.answered = False
        self.verdict: bytes | None = None

    def test(self) -> bool:
        """Whether the answer has come."""
        return self.answered

    def answer(self, verdict: bytes | None) -> None:
        """What voter 0 says."""
        self.verdict = verdict
        self.answered = True


class InlineRound(ReferenceRound):
    """One shard, which voter 0 tallies; its options are those that ``inline_options()`` gives.

    Attributes:
        pending: of the vote under way, for those who carry it.
    """

    pending: PendingVerdict

    def run(
        self, step: int, operands: Sequence[Operand], *, joined: bool = False, write: bool = True
    ) -> Iterator[Pending]:
        """One vote: pack, wait for the verdict, and write if the ballots were counted."""
        self.begin(step)
        self.pack(operands, joined=joined)
        self.pending = PendingVerdict(self.messages.ballots.tobytes())
        if self.transport.rank != 0:
            recorder.add(payload_bytes=self.messages.ballots.nbytes)
        yield self.pending
        if self.pending.verdict is None:
            return
        self.messages.verdicts[:] = self._message(self.pending.verdict, "verdict", 0)
        self.check_verdicts()
        recorder.add(votes=1)
        if write:
            with self.span("apply"):
                self.write(operands)

    def tally(self, ballots: Iterable[bytes]) -> bytes:
        """The verdict on all ranks' ballots, in order of ranks; asked of voter 0.

        Raises:
            ValueError: one is damaged, or of another vote.
        """
        rows = [self._message(ballot, "ballot", rank) for rank, ballot in enumerate(ballots)]
        self.received[:] = np.concatenate(rows)
        self.decide(0)
        recorder.add(payload_bytes=self.verdict.nbytes * (self.transport.size - 1))
        return self.verdict.tobytes()

    def _message(self, sent: bytes, what: str, rank: int) -> npt.NDArray[np.uint8]:
        size = self.messages.geometry.message_bytes
        if len(sent) != size:
            raise ValueError(f"{what} from rank {rank}: expected {size} bytes, got {len(sent)}")
        return np.frombuffer(sent, np.uint8)
