"""The ballot box step by step: each communication is waited for before the next thing is done.

The reference for every faster way, and the fallback where none can be had.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from hvd_sign import kernels
from hvd_sign.algorithms import Algorithm
from hvd_sign.ballots import BallotBox, Voter
from hvd_sign.buckets import Bucket
from hvd_sign.exchanges import get_exchange
from hvd_sign.observe import observers
from hvd_sign.options import VoteOptions
from hvd_sign.stats import recorder
from hvd_sign.transports.base import Pending, Transport
from hvd_sign.votes import VoteRule


class StepwiseBox(BallotBox):
    """The bucket's messages, one for each shard.

    Attributes:
        received: uint8, one message from each voter.
        verdict: uint8, one message: what this rank decided.
    """

    def __init__(
        self,
        bucket: Bucket,
        rule: VoteRule,
        algorithm: Algorithm,
        options: VoteOptions,
        transport: Transport,
        stream: int,
    ) -> None:
        super().__init__(bucket, rule, algorithm, options, transport, stream)
        self.exchange = get_exchange(options.exchange)
        shards = self.exchange.shards(transport.size)
        self._scales_per_message = -(-len(bucket.specs) // shards) if self.scaled else 0
        self.geometry = kernels.Geometry(
            bucket.blocks, shards, options.ties == "zero", self._scales_per_message
        )
        one = self.geometry.message_bytes
        self.ballots = np.zeros(self.geometry.total_bytes, np.uint8)
        self.received = np.zeros(one * transport.size, np.uint8)
        self.verdict = np.zeros(one, np.uint8)
        self.verdicts = np.zeros(self.geometry.total_bytes, np.uint8)
        self._step = 0

    def decide(
        self, step: int, voters: Sequence[Voter], *, joined: bool = False, obey: bool = True
    ) -> Iterator[Pending]:
        """One vote: cast, exchange, obey."""
        with recorder.timed("pack_seconds"), self._span("pack", step):
            self._cast(step, voters, joined)
        for pending in self.exchange.run(self):
            start = time.perf_counter()
            with self._span("exchange", step):
                yield pending
            recorder.add(exchange_seconds=time.perf_counter() - start)
        recorder.add(votes=1)
        if obey:
            with self._span("apply", step):
                self.obey(voters)

    @contextmanager
    def _span(self, what: str, step: int) -> Iterator[None]:
        begin = time.monotonic()
        yield
        if observers.timeline is not None:
            observers.timeline.span(
                what, self.stream, begin, time.monotonic(), step=step, bucket=self.bucket.index
            )

    def _cast(self, step: int, voters: Sequence[Voter], joined: bool) -> None:
        self._step = step
        self.begin(step)
        casts = [voter.cast(slot) for voter, slot in zip(voters, self.slots, strict=True)]
        if self.scaled:
            trailers = self._trailers(self.ballots)
            means = np.full(trailers.size, np.nan, np.float32)
            means[: len(casts)] = [
                cast.abs_sum / cast.finite if cast.finite else np.nan for cast in casts
            ]
            trailers[:] = means.reshape(trailers.shape)
        nonfinite = sum(cast.nonfinite_chunks for cast in casts)
        recorder.add(nonfinite_chunks=nonfinite)
        self.log_abstention(step, nonfinite)
        flags = 0
        if nonfinite:
            flags |= kernels.NONFINITE
        if not any(cast.finite for cast in casts):
            flags |= kernels.ABSTAINED
        if joined:
            flags |= kernels.JOINED
        self._seal(self.ballots, kernels.BALLOT, flags, nonfinite, shard=-1)

    def tally(self, shard: int) -> None:
        """Checks the received ballots of ``shard`` and decides it; called by exchanges."""
        with recorder.timed("tally_seconds"), self._span("tally", self._step):
            flags, counters = self._check(self.received, kernels.BALLOT, shard)
            seen = self.rule.tally(self, shard)
            self.verdict_flags = _combine(flags)
            self._seal(self.verdict, kernels.VERDICT, self.verdict_flags, sum(counters), shard)
            recorder.add(ties=seen.ties)

    def check_verdicts(self) -> None:
        """Checks the verdicts of all owners; called by exchanges."""
        flags, _ = self._check(self.verdicts, kernels.VERDICT, shard=-1)
        self.verdict_flags = _combine(flags)

    def scales(self) -> list[float]:
        """From the verdicts' trailers."""
        count = len(self.slots)
        if not self.scaled:
            return [1.0] * count
        means: list[float] = self._trailers(self.verdicts).reshape(-1)[:count].tolist()
        return means

    def _trailers(self, messages: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The messages' floats: tensor t's is in message t // n at t % n; NaN does not count."""
        start = self.geometry.trailer_offset
        rows = messages.reshape(-1, self.geometry.message_bytes)
        return rows[:, start : start + 4 * self._scales_per_message].view(np.float32)

    def _seal(
        self,
        messages: npt.NDArray[np.uint8],
        kind: int,
        flags: int,
        counter: int,
        shard: int,
    ) -> None:
        kernels.seal(
            messages,
            self.geometry,
            kind=kind,
            flags=flags,
            ties=self.ties,
            stream=self.stream,
            bucket=self.bucket.index,
            chunk=0,
            counter=counter,
            step=self._step,
            sender=self.transport.rank,
            shard=shard,
        )

    def _check(
        self, messages: npt.NDArray[np.uint8], kind: int, shard: int
    ) -> tuple[list[int], list[int]]:
        return kernels.check(
            messages,
            self.geometry,
            kind=kind,
            ties=self.ties,
            stream=self.stream,
            bucket=self.bucket.index,
            chunk=0,
            step=self._step,
            shard=shard,
        )


def _combine(flags: Sequence[int]) -> int:
    """Flags of several messages in one: joined or abstained if all are, non-finite if any is."""
    every = kernels.JOINED | kernels.ABSTAINED
    anyone = 0
    for flag in flags:
        every &= flag
        anyone |= flag
    return every | (anyone & kernels.NONFINITE)
