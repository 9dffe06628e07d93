"""Votes in a world of one: no MPI, no thread, nothing sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hvd_sign.core import kernels
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.stats import VoteStats
from hvd_sign.core.training import TrainingOptions
from hvd_sign.engine.progress import Handle, Stream, Task
from hvd_sign.runtime.sessions import DEFAULTS, VoteSession
from hvd_sign.transports import LocalTransport
from hvd_sign.transports.communication import Pending
from hvd_sign.votes import MajorityVote


class LoneStream(Stream):
    """Votes of one rank, which have ended when they are submitted: no engine moves them."""

    def __init__(self) -> None:
        self.transport = LocalTransport()
        self.number = 0
        self.spent = VoteStats()

    def submit(
        self,
        name: str,
        steps: Iterator[Pending],
        finished: Callable[[], None] | None = None,
        *,
        patient: bool = False,
    ) -> Handle:
        """Holds a vote.

        Raises:
            Exception: whatever ends it early.
        """
        task = Task(name, steps, finished, patient=patient)
        with kernels.ExactFloats():
            while not task.handle.done():
                task.advance()
        return task.handle


def lone_session(
    specs: Sequence[TensorSpec], options: VoteOptions, training: TrainingOptions = DEFAULTS
) -> VoteSession:
    """A session of one rank, in which what ranks would decide together is this one's ballot."""
    return VoteSession(LoneStream(), specs, MajorityVote(), options, training=training)
