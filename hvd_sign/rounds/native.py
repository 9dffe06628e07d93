"""The vote over the native engine: segments are packed, sent, tallied and written at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hvd_sign.core import kernels
from hvd_sign.core.observe import observers
from hvd_sign.core.places import ABSTAINED, Messages
from hvd_sign.core.stats import recorder
from hvd_sign.devices import Operand
from hvd_sign.errors import VoteError
from hvd_sign.exchanges import get_exchange
from hvd_sign.exchanges.planning import planned_segment_blocks
from hvd_sign.rounds.base import Round, Subject
from hvd_sign.transports.communication import Pending

SEGMENT_BLOCKS = 25_000
"""Blocks of 64 coordinates in a segment at most: 1.6 million coordinates, 200 KB of
signs. Where the link was measured, a segment may be planned to be smaller."""

DEPTH = 6
"""Segments under way at most."""


def can_run_natively(subject: Subject) -> bool:
    """Whether the native engine can hold such votes."""
    return (
        subject.transport.native is not None
        and subject.rule.native
        and get_exchange(subject.options.exchange).owners(subject.transport.size) is not None
    )


class NativeRound(Round):
    """A bucket whose segments the native engine moves.

    Its messages hold the whole bucket in one message each, for operands that only their device can
    pack and write.

    Args:
        subject: what is voted on.
        segment_blocks: blocks in a segment; planned if None.
    """

    starts_ahead = True

    def __init__(self, subject: Subject, *, segment_blocks: int | None = None) -> None:
        super().__init__(subject)
        bucket, options, transport = self.bucket, self.options, self.transport
        if segment_blocks is None:
            segment_blocks = planned_segment_blocks(
                bucket.blocks, SEGMENT_BLOCKS, options, transport
            )
        assert transport.native is not None
        self._native = transport.native
        averages = self.algorithm.averages
        geometry = kernels.Geometry(bucket.blocks, 1, options.ties == "zero", 0, averages)
        parity = bool(transport.rank & 1)
        self.messages = Messages(bucket, options, geometry, parity=parity)
        self._plan = self._native.module.plan(
            tensors=[(p.first_block, p.spec.size, p.spec.ordinal) for p in self.messages.places],
            blocks=bucket.blocks,
            ties=self.messages.ties,
            owners=get_exchange(options.exchange).owners(transport.size),
            scaled=self.messages.scaled,
            rank=transport.rank,
            voters=transport.size,
            stream=self.stream,
            bucket=bucket.index,
            segment_blocks=segment_blocks,
            depth=DEPTH,
            counted=self.rule.learns,
            averaged=averages,
            ballots=self.messages.ballots,
            verdicts=self.messages.verdicts,
        )
        self._vote = self._native.module.vote(self._plan)
        self.segments = self._plan.segments

    def run(
        self, step: int, operands: Sequence[Operand], *, joined: bool = False, write: bool = True
    ) -> Iterator[Pending]:
        """One vote, handed to the engine; what it cannot write to is written at the end."""
        self.begin(step)
        direct = write and not self.messages.scaled
        packing, taken = [], []
        with recorder.timed("pack_seconds"):
            linear, states = self.algorithm.linear(), self.states.of(operands)
            rows = zip(operands, self.messages.places, states, strict=True)
            for operand, place, state in rows:
                arrays = operand.device.host_arrays(operand)
                out = arrays.out if direct and arrays is not None else None
                signal, fused, packed = None, None, ABSTAINED
                if arrays and (operand.raw or self.algorithm.is_gradient):
                    signal = arrays.signal
                elif arrays and linear and state and operand.votes(self.algorithm):
                    signal, fused = arrays.signal, state.fuse(linear, operand.unscale)
                if signal is None and fused is None:
                    # What the engine cannot pack the device does, or it abstains.
                    packed = operand.pack(place, self.algorithm, state)
                signal, bfloat16 = kernels.as_bits(signal)
                out, _ = kernels.as_bits(out, bfloat16)
                packing.append((signal, out, operand.factor, bfloat16, *packed, fused))
                taken.append(out is not None)
        if not self._vote.test():  # a joining rank serves before its last step has ended
            self._vote = self._native.module.vote(self._plan)
        vote = self._vote
        vote.begin(
            operands=packing,
            step=step,
            zero_key=self.messages.zero_key,
            tie_key=self.messages.tie_key,
            joined=joined,
            keep=not all(taken),
            trace=observers.timeline is not None,
            weights=None if self.weights is None else self.weights.tolist(),
            unsaid=self.states.unsaid() if self.algorithm.averages else None,
        )
        pending = self._native.submit(vote)
        try:
            yield pending
        except GeneratorExit:  # given up, but not by the engine, which may yet read and write
            self._native.given_up.append(vote)
            raise
        if vote.error:
            raise VoteError(vote.error)
        self.verdict_flags = vote.flags
        if self.algorithm.feedback:
            for state, mean_abs in zip(states, vote.means, strict=True):
                if state is not None:
                    state.mean_abs = mean_abs
        if self.rule.learns:
            self.judged, self.agreed = np.split(np.array(vote.counts, np.uint64), 2)
        totals = vote.totals()
        if not self._native.counts_payload:
            del totals["payload_bytes"]
        recorder.add(votes=1, **totals)
        self.log_abstention(totals["nonfinite_chunks"])
        if observers.timeline is not None:
            for what, segment, begin, end in vote.spans():
                observers.timeline.span(
                    what,
                    self.stream,
                    begin,
                    end,
                    step=step,
                    bucket=self.bucket.index,
                    segment=segment,
                )
        if write and not all(taken):
            with recorder.timed("apply_seconds"):
                left = zip(operands, self.messages.places, self.scales(), taken, strict=True)
                for operand, place, scale, done in left:
                    if not done:
                        operand.write(place, scale)

    def scales(self) -> list[float]:
        """From the last segment's trailers."""
        return list(self._plan.scales) if self.messages.scaled else [1.0] * len(self.bucket.specs)
