"""The ballot box step by step: each communication is waited for before the next thing is done.

The reference for every faster way, and the fallback where none can be had.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from hvd_sign import kernels
from hvd_sign.algorithms import Algorithm
from hvd_sign.ballots import BallotBox, Voter, combine
from hvd_sign.buckets import Bucket
from hvd_sign.exchanges import get_exchange
from hvd_sign.options import VoteOptions
from hvd_sign.stats import recorder
from hvd_sign.transports.base import Pending, Transport
from hvd_sign.votes import VoteRule


class StepwiseBox(BallotBox):
    """The bucket's messages, one for each shard.

    Attributes:
        received: uint8, one message from each of the ballots that meet in a tally.
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
        self.exchange = get_exchange(options.exchange)(transport)
        self.parity = self.exchange.parity
        shards = self.exchange.shards
        scales = -(-len(bucket.specs) // shards) if self.scaled else 0
        self.geometry = kernels.Geometry(bucket.blocks, shards, options.ties == "zero", scales)
        one = self.geometry.message_bytes
        self.ballots = np.zeros(self.geometry.total_bytes, np.uint8)
        self.received = np.zeros(one * self.exchange.ballots, np.uint8)
        self.verdict = np.zeros(one, np.uint8)
        self.verdicts = np.zeros(self.geometry.total_bytes, np.uint8)

    def decide(
        self, step: int, voters: Sequence[Voter], *, joined: bool = False, obey: bool = True
    ) -> Iterator[Pending]:
        """One vote: cast, exchange, obey."""
        self.begin(step)
        for pending in self.exchange.run(self, voters, joined=joined):
            start = time.perf_counter()
            with self.span("exchange"):
                yield pending
            recorder.add(exchange_seconds=time.perf_counter() - start)
        recorder.add(votes=1)
        if obey:
            with self.span("apply"):
                self.obey(voters)

    def cast(
        self,
        voters: Sequence[Voter],
        *,
        joined: bool,
        sender: int | None = None,
        nonfinite: int = 0,
        sizes: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Packs and seals this rank's ballot; called by exchanges.

        Args:
            voters: one for each of the bucket's tensors.
            joined: this rank has no more data.
            sender: its number among those whose ballots meet; the exchange's own by default.
            nonfinite: chunks with NaN or Inf that were met before.
            sizes: float32[len(voters)], mean absolute signals in the place of the voters' own.
        """
        with recorder.timed("pack_seconds"), self.span("pack"):
            number = self.exchange.number if sender is None else sender
            self._cast(voters, joined, number, nonfinite, sizes)

    def _cast(
        self,
        voters: Sequence[Voter],
        joined: bool,
        sender: int,
        nonfinite: int,
        sizes: npt.NDArray[np.float32] | None,
    ) -> None:
        casts = [voter.cast(slot) for voter, slot in zip(voters, self.slots, strict=True)]
        if self.scaled:
            trailers = self.trailers(self.ballots)
            means = np.zeros(trailers.size, np.float32)
            means[: len(casts)] = [cast.mean_abs for cast in casts] if sizes is None else sizes
            trailers[:] = means.reshape(trailers.shape)
        found = sum(cast.nonfinite_chunks for cast in casts)
        self.note_nonfinite(found)
        nonfinite += found
        flags = 0
        if nonfinite:
            flags |= kernels.NONFINITE
        if not any(cast.finite for cast in casts):
            flags |= kernels.ABSTAINED
        if joined:
            flags |= kernels.JOINED
        self.seal(self.ballots, kernels.BALLOT, flags, nonfinite, sender=sender)

    def tally(self, shard: int) -> None:
        """Checks the received ballots of ``shard`` and decides it; called by exchanges."""
        with recorder.timed("tally_seconds"), self.span("tally"):
            flags, counters = self.check(
                self.received, kernels.BALLOT, shard, senders=self.exchange.senders
            )
            seen = self.rule.tally(self, shard)
            self.verdict_flags = combine(flags)
            self.seal(
                self.verdict,
                kernels.VERDICT,
                self.verdict_flags,
                sum(counters),
                sender=self.exchange.number,
                shard=shard,
            )
            recorder.add(ties=seen.ties)

    def check_verdicts(self) -> None:
        """Checks the verdicts of all owners; called by exchanges."""
        owners = self.exchange.senders[: self.exchange.shards]
        flags, _ = self.check(self.verdicts, kernels.VERDICT, senders=owners)
        self.verdict_flags = combine(flags)

    def scales(self) -> list[float]:
        """From the verdicts' trailers."""
        count = len(self.slots)
        if not self.scaled:
            return [1.0] * count
        medians: list[float] = self.trailers(self.verdicts).reshape(-1)[:count].tolist()
        return medians

    def trailers(self, messages: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The messages' floats: tensor t's is in message t // n at t % n; 0 does not count."""
        return kernels.trailers(messages, self.geometry)

    def seal(
        self,
        messages: npt.NDArray[np.uint8],
        kind: int,
        flags: int,
        counter: int,
        *,
        sender: int,
        shard: int = -1,
        geometry: kernels.Geometry | None = None,
    ) -> None:
        """Writes the headers of messages; message j has shard j unless ``shard`` says which."""
        kernels.seal(
            messages,
            geometry or self.geometry,
            kind=kind,
            flags=flags,
            ties=self.ties,
            stream=self.stream,
            bucket=self.bucket.index,
            chunk=0,
            counter=counter,
            step=self.step,
            sender=sender,
            shard=shard,
        )

    def check(
        self,
        messages: npt.NDArray[np.uint8],
        kind: int,
        shard: int = -1,
        *,
        senders: Sequence[int],
        geometry: kernels.Geometry | None = None,
    ) -> tuple[list[int], list[int]]:
        """Checks the headers of messages, one from each sender; returns flags and counters.

        Raises:
            ValueError: a message is damaged, or of another vote; names its sender's rank.
        """
        return kernels.check(
            messages,
            geometry or self.geometry,
            kind=kind,
            ties=self.ties,
            stream=self.stream,
            bucket=self.bucket.index,
            chunk=0,
            step=self.step,
            shard=shard,
            ranks=list(senders),
        )
