"""The vote step by step: each communication is waited for before the next thing is done.

The reference for every faster way, and the fallback where none can be had.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from hvd_sign.core import kernels
from hvd_sign.core.places import Messages
from hvd_sign.core.stats import recorder
from hvd_sign.devices import Operand
from hvd_sign.exchanges import get_exchange
from hvd_sign.exchanges.base import combine
from hvd_sign.rounds.base import Round, Subject
from hvd_sign.transports.communication import Pending
from hvd_sign.votes import Count, Tally


class ReferenceRound(Round):
    """The bucket's messages, one for each shard.

    Attributes:
        received: uint8, one message from each of the ballots that meet in a tally.
        verdict: uint8, one message: what this rank decided.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.exchange = get_exchange(self.options.exchange)(self.transport)
        shards = self.exchange.shards
        averages = self.algorithm.averages
        scaled = self.options.scale != "none" and not averages
        scales = -(-len(self.bucket.specs) // shards) if scaled else 0
        # Behind the scales: two counts a voter, which are aligned.
        self._counts = 4 * self.judged.size
        floats = (scales + 1) // 2 * 2 + self._counts if self.rule.learns else scales
        self._scales = scales
        exact = self.options.ties == "zero"
        geometry = kernels.Geometry(self.bucket.blocks, shards, exact, floats, averages)
        self.messages = Messages(self.bucket, self.options, geometry, parity=self.exchange.parity)
        self.received = np.zeros(geometry.message_bytes * self.exchange.voters, np.uint8)
        self.verdict = np.zeros(geometry.message_bytes, np.uint8)

    def run(
        self, step: int, operands: Sequence[Operand], *, joined: bool = False, write: bool = True
    ) -> Iterator[Pending]:
        """One vote: pack, exchange, write."""
        self.begin(step)
        for pending in self.exchange.run(self, operands, joined=joined):
            start = time.perf_counter()
            with self.span("exchange"):
                yield pending
            recorder.add(exchange_seconds=time.perf_counter() - start)
        recorder.add(votes=1)
        if write:
            with self.span("apply"):
                self.write(operands)

    def pack(
        self,
        operands: Sequence[Operand],
        *,
        joined: bool,
        sender: int | None = None,
        nonfinite: int = 0,
        sizes: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Packs and seals this rank's ballot; called by exchanges, whose ``Round`` documents it."""
        with recorder.timed("pack_seconds"), self.span("pack"):
            number = self.exchange.number if sender is None else sender
            self._pack(operands, joined, number, nonfinite, sizes)

    def _pack(
        self,
        operands: Sequence[Operand],
        joined: bool,
        sender: int,
        nonfinite: int,
        sizes: npt.NDArray[np.float32] | None,
    ) -> None:
        rows = zip(operands, self.messages.places, self.states.of(operands), strict=True)
        packed = [operand.pack(place, self.algorithm, state) for operand, place, state in rows]
        if self.messages.scaled:
            trailers = self.trailers(self.messages.ballots)
            means = np.zeros(trailers.size, np.float32)
            means[: len(packed)] = [one.mean_abs for one in packed] if sizes is None else sizes
            trailers[:] = means.reshape(trailers.shape)
        found = sum(one.nonfinite_chunks for one in packed)
        self.note_nonfinite(found)
        nonfinite += found
        flags = 0
        if nonfinite:
            flags |= kernels.NONFINITE
        if not any(one.finite for one in packed):
            flags |= kernels.ABSTAINED
        if joined:
            flags |= kernels.JOINED
        self.seal(self.messages.ballots, kernels.BALLOT, flags, nonfinite, sender=sender)

    def decide(self, shard: int) -> None:
        """Checks the received ballots of ``shard`` and decides it; called by exchanges."""
        with recorder.timed("tally_seconds"), self.span("tally"):
            flags, counters = self.check(
                self.received, kernels.BALLOT, shard, senders=self.exchange.senders
            )
            seen = self.count(self.received, self.verdict, shard, key=self.messages.tie_key)
            self.verdict_flags = combine(flags)
            self.seal(
                self.verdict,
                kernels.VERDICT,
                self.verdict_flags,
                sum(counters),
                sender=shard,
                shard=shard,
            )
            recorder.add(ties=seen.ties)

    def count(
        self,
        ballots: npt.NDArray[np.uint8],
        verdict: npt.NDArray[np.uint8],
        shard: int,
        *,
        key: int,
        parity: bool = False,
    ) -> Tally:
        """Lets the rule decide ballots of a shard, with coins of its own for ties."""
        messages = self.messages
        if messages.averaged:
            means = kernels.tally_means(
                ballots,
                messages.geometry,
                verdict,
                shard=shard,
                ties=messages.ties,
                key=key,
                first_blocks=self.bucket.first_blocks[:-1],
                ordinals=self.bucket.ordinals,
                lengths=self.bucket.lengths,
                unsaid=self.states.unsaid(),
            )
            return Tally(*means)
        judged = agreed = None
        if self.rule.learns:
            judged, agreed = np.zeros((2, self.judged.size), np.uint64)
        count = Count(
            ballots,
            verdict,
            messages.geometry,
            self.bucket,
            shard,
            messages.ties,
            key,
            parity,
            self.weights,
            judged,
            agreed,
        )
        seen = self.rule.tally(count)
        if self.rule.learns:
            self._counts_in(verdict)[0] = judged, agreed
        return seen

    def check_verdicts(self, senders: Sequence[int] | None = None) -> None:
        """Checks the verdicts of all shards; called by exchanges.

        Args:
            senders: who sent each shard's; by default who sends the ballot of that number.
        """
        if senders is None:
            senders = self.exchange.senders[: self.exchange.shards]
        flags, _ = self.check(self.messages.verdicts, kernels.VERDICT, senders=senders)
        self.verdict_flags = combine(flags)
        self._learn()

    def _learn(self) -> None:
        if self.rule.learns:
            self.judged, self.agreed = self._counts_in(self.messages.verdicts).sum(axis=0)

    def scales(self) -> list[float]:
        """From the verdicts' trailers."""
        count = len(self.bucket.specs)
        if not self.messages.scaled:
            return [1.0] * count
        medians: list[float] = self.trailers(self.messages.verdicts).reshape(-1)[:count].tolist()
        return medians

    def trailers(self, messages: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The messages' floats: tensor t's is in message t // n at t % n; 0 does not count."""
        return kernels.trailers(messages, self.messages.geometry)[:, : self._scales]

    def _counts_in(self, messages: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
        """uint64[messages, 2, voters]: coordinates judged, and agreed on."""
        trailers = kernels.trailers(messages, self.messages.geometry)
        counts = trailers[:, trailers.shape[1] - self._counts :]
        return counts.view(np.uint64).reshape(len(trailers), 2, -1)

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
            geometry or self.messages.geometry,
            kind=kind,
            flags=flags,
            ties=self.messages.ties,
            stream=self.stream,
            bucket=self.bucket.index,
            segment=0,
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
            geometry or self.messages.geometry,
            kind=kind,
            ties=self.messages.ties,
            stream=self.stream,
            bucket=self.bucket.index,
            segment=0,
            step=self.step,
            shard=shard,
            ranks=list(senders),
        )
