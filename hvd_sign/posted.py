"""The ballot box of a vote so small that ballots travel with the ranks' agreement to hold it.

One message to voter 0, which tallies, and one back, instead of an exchange after the agreement.
The verdict is that of every exchange in which each rank counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hvd_sign.ballots import Voter
from hvd_sign.exchanges import AUTO, AllGather, Sharded
from hvd_sign.options import VoteOptions
from hvd_sign.stats import recorder
from hvd_sign.stepwise import StepwiseBox
from hvd_sign.transports.base import Pending

MOST_BLOCKS = 256
"""Blocks of 64 coordinates in a posted vote: its messages are of 4 KiB at most, which take hardly
longer than empty ones."""


def can_post(blocks: int, options: VoteOptions) -> bool:
    """Whether a vote may be tallied by voter 0 alone, and is small enough."""
    trusting = options.exchange == Sharded.name or (
        options.exchange == AUTO and options.fallback is None
    )
    return trusting and blocks <= MOST_BLOCKS


def posted(options: VoteOptions) -> VoteOptions:
    """The options of a posted vote's box: one shard, and a ballot from every rank."""
    return replace(options, exchange=AllGather.name, local="vote")


class Post:
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


class PostedBox(StepwiseBox):
    """One shard, which voter 0 tallies; its options are those that ``posted()`` gives.

    Attributes:
        post: of the vote under way, for those who carry it.
    """

    post: Post

    def decide(
        self, step: int, voters: Sequence[Voter], *, joined: bool = False, obey: bool = True
    ) -> Iterator[Pending]:
        """One vote: cast, wait for the post, and obey if the ballots were counted."""
        self.begin(step)
        self.cast(voters, joined=joined)
        self.post = Post(self.ballots.tobytes())
        if self.transport.rank != 0:
            recorder.add(payload_bytes=self.ballots.nbytes)
        yield self.post
        if self.post.verdict is None:
            return
        self.verdicts[:] = self._message(self.post.verdict, "verdict", 0)
        self.check_verdicts()
        recorder.add(votes=1)
        if obey:
            with self.span("apply"):
                self.obey(voters)

    def count(self, ballots: Iterable[bytes]) -> bytes:
        """The verdict on all ranks' ballots, in order of ranks; asked of voter 0.

        Raises:
            ValueError: one is damaged, or of another vote.
        """
        rows = [self._message(ballot, "ballot", rank) for rank, ballot in enumerate(ballots)]
        self.received[:] = np.concatenate(rows)
        self.tally(0)
        recorder.add(payload_bytes=self.verdict.nbytes * (self.transport.size - 1))
        return self.verdict.tobytes()

    def _message(self, sent: bytes, what: str, rank: int) -> npt.NDArray[np.uint8]:
        if len(sent) != self.geometry.message_bytes:
            raise ValueError(
                f"{what} from rank {rank}: expected {self.geometry.message_bytes} bytes, got "
                f"{len(sent)}"
            )
        return np.frombuffer(sent, np.uint8)
