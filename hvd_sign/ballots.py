"""The ballot box of a bucket: its messages, from the tensors that cast to those that obey."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hvd_sign import kernels
from hvd_sign.algorithms import Algorithm
from hvd_sign.buckets import Bucket, TensorSpec
from hvd_sign.exchanges import get_exchange
from hvd_sign.options import TIES, VoteOptions
from hvd_sign.stats import recorder
from hvd_sign.transports.base import Pending, Transport
from hvd_sign.votes import VoteRule


class Cast(NamedTuple):
    """What packing a tensor noticed.

    Attributes:
        nonfinite_chunks: chunks of 4096 coordinates that hold NaN or Inf: abstained in.
        finite: coordinates in the other chunks.
        abs_sum: sum of their absolute signal; only computed where a scale is asked for.
    """

    nonfinite_chunks: int
    finite: int
    abs_sum: float


ABSTAINED = Cast(0, 0, 0.0)


class Voter(Protocol):
    """A tensor of one rank, as a ballot box sees it; bindings and devices have their own."""

    def cast(self, slot: Slot) -> Cast:
        """Puts the tensor's signs into the slot."""
        ...

    def obey(self, slot: Slot, scale: float) -> None:
        """Takes ``scale`` times the verdict from the slot."""
        ...


class HostVoter:
    """A tensor in host memory.

    Args:
        signal: contiguous fp32, fp64, fp16 or bf16 array, or None to abstain.
        out: where the verdict is written; may be ``signal`` itself; None drops the verdict.
    """

    def __init__(self, signal: Any, out: Any) -> None:
        self.signal = signal
        self.out = out

    def cast(self, slot: Slot) -> Cast:
        """Lets the algorithm pack its signal."""
        if self.signal is None:
            slot.abstain()
            return ABSTAINED
        return slot.box.algorithm.cast(self.signal, slot)

    def obey(self, slot: Slot, scale: float) -> None:
        """Overwrites ``out``."""
        if self.out is not None:
            slot.write(self.out, scale)


class Slot(NamedTuple):
    """A tensor's place in a ballot box."""

    box: BallotBox
    spec: TensorSpec
    first_block: int

    def pack(self, signal: Any) -> Cast:
        """Packs a contiguous host array's signs."""
        box = self.box
        return Cast(
            *kernels.pack(
                signal,
                box.ballots,
                box.geometry,
                self.first_block,
                ties=box.ties,
                key=box.zero_key,
                parity=self.parity,
                ordinal=self.spec.ordinal,
                want_abs=box.scaled,
            )
        )

    @property
    def parity(self) -> bool:
        """Whether this voter's zero coins are turned round, so that two voters' zeros cancel."""
        return bool(self.box.transport.rank & 1)

    def abstain(self) -> None:
        """Casts nothing in all of the tensor's blocks."""
        kernels.abstain(self.box.ballots, self.box.geometry, self.first_block, self.spec.blocks)

    def write(self, out: Any, scale: float) -> None:
        """Writes ``scale`` times the verdict to a contiguous host array."""
        kernels.write_verdict(
            out, self.box.verdicts, self.box.geometry, self.first_block, scale=scale
        )


class BallotBox:
    """The messages of one bucket on one stream; buffers are made once and used at every step.

    Args:
        bucket: the tensors.
        rule: decides.
        algorithm: chooses the signals.
        options: ties, exchange, seed, scale.
        transport: connects the voters.
        stream: the stream's number, told in every message.
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
        self.bucket = bucket
        self.rule = rule
        self.algorithm = algorithm
        self.options = options
        self.transport = transport
        self.exchange = get_exchange(options.exchange)
        self.ties = TIES.index(options.ties)
        self.scaled = options.scale == "mean_abs"
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
        self.slots = [
            Slot(self, spec, int(first))
            for spec, first in zip(bucket.specs, bucket.first_blocks, strict=False)
        ]
        self._stream = stream
        self._step = 0
        self.zero_key = self.tie_key = 0
        self.verdict_flags = 0

    def decide(
        self, step: int, voters: Sequence[Voter], *, joined: bool = False, obey: bool = True
    ) -> Iterator[Pending]:
        """One vote, as a sequence of communications to wait for.

        Args:
            step: number of the vote; a coin's argument.
            voters: one for each of the bucket's tensors.
            joined: this rank has no more data, and only serves.
            obey: write the verdict to the voters at the end; else the caller does, by ``obey()``.
        """
        with recorder.timed("pack_seconds"):
            self._cast(step, voters, joined)
        for pending in self.exchange.run(self):
            start = time.perf_counter()
            yield pending
            recorder.add(exchange_seconds=time.perf_counter() - start)
        recorder.add(votes=1)
        if obey:
            self.obey(voters)

    def _cast(self, step: int, voters: Sequence[Voter], joined: bool) -> None:
        self._step = step
        self.zero_key = kernels.coin_key(self.options.seed, "zero", step)
        self.tie_key = kernels.coin_key(self.options.seed, "tie", step)
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
        with recorder.timed("tally_seconds"):
            flags, counters = self._check(self.received, kernels.BALLOT, shard)
            seen = self.rule.tally(self, shard)
            self.verdict_flags = _combine(flags)
            self._seal(self.verdict, kernels.VERDICT, self.verdict_flags, sum(counters), shard)
            recorder.add(ties=seen.ties)

    def check_verdicts(self) -> None:
        """Checks the verdicts of all owners; called by exchanges."""
        flags, _ = self._check(self.verdicts, kernels.VERDICT, shard=-1)
        self.verdict_flags = _combine(flags)

    def obey(self, voters: Sequence[Voter]) -> None:
        """Writes the verdict to the voters."""
        with recorder.timed("apply_seconds"):
            count = len(self.slots)
            scales = [1.0] * count
            if self.scaled:
                scales = self._trailers(self.verdicts).reshape(-1)[:count].tolist()
            for voter, slot, scale in zip(voters, self.slots, scales, strict=True):
                voter.obey(slot, scale)

    @property
    def nonfinite(self) -> bool:
        """Whether any rank met NaN or Inf."""
        return bool(self.verdict_flags & kernels.NONFINITE)

    @property
    def all_joined(self) -> bool:
        """Whether every rank has joined."""
        return bool(self.verdict_flags & kernels.JOINED)

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
            stream=self._stream,
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
            stream=self._stream,
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
