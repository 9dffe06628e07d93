"""One bucket's vote: what all ways to hold it have in common."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import Algorithm
from hvd_sign.core import kernels
from hvd_sign.core.buckets import Bucket
from hvd_sign.core.observe import observers
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.places import Messages
from hvd_sign.core.stats import recorder
from hvd_sign.devices import Operand, States
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Pending
from hvd_sign.votes import State, VoteRule, initial_of, weights_of

logger = logging.getLogger("hvd_sign")

_abstention_told = False


class Subject(NamedTuple):
    """What is voted on, how, and among whom.

    Attributes:
        bucket: the tensors.
        rule: decides.
        algorithm: chooses the signals.
        options: ties, exchange, seed, scale.
        transport: connects the voters.
        stream: the stream's number, told in every message.
    """

    bucket: Bucket
    rule: VoteRule
    algorithm: Algorithm
    options: VoteOptions
    transport: Transport
    stream: int


class Round(ABC):
    """A bucket on one stream; what its votes need is made once and used at every step.

    Attributes:
        messages: what operands are packed into, and where they find the verdict.
        states: what the algorithm keeps for the tensors.
        weights: of the voters in the next vote, int8[voters]; None: one vote each.
        judged, agreed: of the last vote, see ``VoteRule.learn()``, if the rule learns.
        step: number of the vote under way.
        title: what the log calls that vote; None: by its step and bucket.
        verdict_flags: of the last verdict.
        starts_ahead: a vote may begin before the one before it has ended.
        segments: how many pieces of the bucket travel one after another.
    """

    starts_ahead = False
    segments = 1
    title: str | None = None
    messages: Messages

    def __init__(self, subject: Subject) -> None:
        bucket, self.rule, self.algorithm, self.options, self.transport, self.stream = subject
        self.bucket = replace(bucket, chunked=self.algorithm.averages)
        self.states = States(
            self.algorithm,
            self.bucket.specs,
            tentative=self.options.nonfinite == "skip",
            exact=self.options.ties == "zero",
        )
        self.step = 0
        self.verdict_flags = 0
        self.weights: npt.NDArray[np.int8] | None = None
        voters = self.transport.size if self.rule.learns else 0
        self.judged, self.agreed = np.zeros((2, voters), np.uint64)
        self.weigh(initial_of(self.rule, self.transport.size))

    @abstractmethod
    def run(
        self, step: int, operands: Sequence[Operand], *, joined: bool = False, write: bool = True
    ) -> Iterator[Pending]:
        """One vote, as a sequence of communications to wait for.

        Args:
            step: number of the vote; a coin's argument.
            operands: one for each of the bucket's tensors.
            joined: this rank has no more data, and only serves.
            write: the verdict to the operands at the end; else the caller does, by ``write()``.
        """

    @abstractmethod
    def scales(self) -> list[float]:
        """Each tensor's scale in the last verdict."""

    def weigh(self, state: State) -> None:
        """Takes the voters' weights from what the rule has learned."""
        self.weights = weights_of(self.rule, state, self.transport.size)

    def begin(self, step: int) -> None:
        """Begins a vote: its number, and its coins."""
        self.step = step
        self.messages.begin(step)

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Shows what is done within it in the timeline, if there is one."""
        begin = time.monotonic()
        yield
        if observers.timeline is not None:
            observers.timeline.span(
                what, self.stream, begin, time.monotonic(), step=self.step, bucket=self.bucket.index
            )

    def note_nonfinite(self, chunks: int) -> None:
        """Counts the chunks in which this rank met NaN or Inf."""
        recorder.add(nonfinite_chunks=chunks)
        self.log_abstention(chunks)

    def log_abstention(self, chunks: int) -> None:
        """Tells once a process that this rank met NaN or Inf."""
        global _abstention_told
        if chunks and not _abstention_told:
            _abstention_told = True
            logger.warning(
                "rank %d met NaN or Inf in %d chunks of 4096 coordinates at %s, which it does not "
                "vote on; vote_stats().nonfinite_chunks counts the others",
                self.transport.rank,
                chunks,
                self.title or f"step {self.step} ({self.bucket})",
            )

    def write(self, operands: Sequence[Operand]) -> None:
        """Writes the verdict to the operands."""
        with recorder.timed("apply_seconds"):
            rows = zip(operands, self.messages.places, self.scales(), strict=True)
            for operand, place, scale in rows:
                operand.write(place, scale)

    @property
    def nonfinite(self) -> bool:
        """Whether any rank met NaN or Inf."""
        return bool(self.verdict_flags & kernels.NONFINITE)

    @property
    def all_joined(self) -> bool:
        """Whether every rank has joined."""
        return bool(self.verdict_flags & kernels.JOINED)
