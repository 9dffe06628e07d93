"""Where a bucket's tensors lie in its messages: what they are packed into, and their verdict.

Zeros, coins and activity are decided here, once, for every device: in the kernels for arrays that
the host reads, and by ``Place.put()`` for planes of bits that a device made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hvd_sign.core import kernels
from hvd_sign.core.buckets import BLOCK, Bucket, TensorSpec
from hvd_sign.core.options import TIES, VoteOptions

CHUNK = kernels.CHUNK_BLOCKS * BLOCK
"""Coordinates that abstain together over NaN or Inf."""

Words = npt.NDArray[np.uint64]
_ONES = np.uint64(2**64 - 1)
LARGEST = float(np.finfo(np.float32).max)


class Packed(NamedTuple):
    """What packing a tensor noticed.

    Attributes:
        nonfinite_chunks: chunks of 4096 coordinates that hold NaN or Inf: abstained in.
        finite: coordinates in the other chunks.
        abs_sum: sum of their absolute signal; only computed where a scale is asked for.
    """

    nonfinite_chunks: int
    finite: int
    abs_sum: float

    @property
    def mean_abs(self) -> float:
        """Over those coordinates, rounded to fp32, as it travels; 0 where there are none."""
        return float(np.float32(min(self.abs_sum / self.finite, LARGEST))) if self.finite else 0.0


ABSTAINED = Packed(0, 0, 0.0)


class Planes(NamedTuple):
    """A tensor's signal as a device packs it, chunks that are not finite counted as zeros.

    Attributes:
        signs: uint64[blocks], 1 = negative; bits of zeros do not matter.
        zeros: uint64[blocks], 1 = zero; bits past the tensor's end do not matter.
        packed: what packing noticed.
    """

    signs: Words
    zeros: Words
    packed: Packed


class Messages:
    """A bucket's messages on one rank, and the coins of the vote under way.

    Args:
        bucket: the tensors.
        options: ties, seed and scale count here.
        geometry: how the bucket lies in the messages.
        parity: whether this rank's zero coins are turned round, so that two ranks' zeros cancel.

    Attributes:
        ballots: uint8[geometry.total_bytes], which tensors are packed into.
        verdicts: uint8[geometry.total_bytes], which the verdict is taken from.
        ties: number of the tie policy.
        scaled: whether absolute sums are wanted.
        averaged: chunks have their own scales, in the messages.
        zero_key: of the coins that decide zeros in this step.
        tie_key: of the coins that decide ties in this step.
        places: of the tensors, in order.
    """

    def __init__(
        self, bucket: Bucket, options: VoteOptions, geometry: kernels.Geometry, *, parity: bool
    ) -> None:
        self.geometry = geometry
        self.parity = parity
        self.ties = TIES.index(options.ties)
        self.averaged = geometry.chunk_scales
        self.scaled = options.scale != "none" and not self.averaged
        self.ballots = np.zeros(geometry.total_bytes, np.uint8)
        self.verdicts = np.zeros(geometry.total_bytes, np.uint8)
        self.zero_key = self.tie_key = 0
        self._seed = options.seed
        self.places = [
            Place(self, spec, int(first))
            for spec, first in zip(bucket.specs, bucket.first_blocks, strict=False)
        ]

    def begin(self, step: int) -> None:
        """Begins a vote: draws its coins."""
        self.zero_key = kernels.coin_key(self._seed, "zero", step)
        self.tie_key = kernels.coin_key(self._seed, "tie", step)


class Place(NamedTuple):
    """A tensor's place in a bucket's messages."""

    messages: Messages
    spec: TensorSpec
    first_block: int

    def pack(self, signal: Any) -> Packed:
        """Packs a contiguous host array's signs."""
        messages = self.messages
        return Packed(
            *kernels.pack(
                signal,
                messages.ballots,
                messages.geometry,
                self.first_block,
                ties=messages.ties,
                key=messages.zero_key,
                parity=messages.parity,
                ordinal=self.spec.ordinal,
                want_abs=messages.scaled,
            )
        )

    def pack_linear(self, gradient: Any, fused: tuple[Any, ...]) -> Packed:
        """Packs a linear algorithm's signs and makes its next state.

        Args:
            gradient: contiguous host array; None: zeros.
            fused: four coefficients, the unscale factor, the state and where the next one goes,
                and what ``kernels.pack_linear`` takes for a feedback.
        """
        messages = self.messages
        a, b, c, d, unscale, state, next_state, feedback = fused
        return Packed(
            *kernels.pack_linear(
                gradient,
                state,
                next_state,
                messages.ballots,
                messages.geometry,
                self.first_block,
                linear=(a, b, c, d),
                unscale=unscale,
                feedback=feedback,
                ties=messages.ties,
                key=messages.zero_key,
                parity=messages.parity,
                ordinal=self.spec.ordinal,
                want_abs=messages.scaled,
            )
        )

    def put(self, planes: Planes) -> Packed:
        """Puts what a device packed into the messages; decides zeros by the tie policy."""
        messages, blocks = self.messages, self.spec.blocks
        if blocks == 0:
            return ABSTAINED
        exists = np.full(blocks, _ONES)
        if self.spec.size % BLOCK:
            exists[-1] = np.uint64(2 ** (self.spec.size % BLOCK) - 1)
        zeros = planes.zeros[:blocks] & exists
        alive = zeros != exists
        signs = np.where(alive, planes.signs[:blocks] & exists & ~zeros, np.uint64(0))
        nonzero = None
        if TIES[messages.ties] == "coin" and (zeros[alive] != 0).any():
            coins = np.zeros(blocks, np.uint64)
            kernels.coin_words(messages.zero_key, self.spec.ordinal, 0, coins)
            coins = ~coins if messages.parity else coins
            signs |= np.where(alive, zeros & coins, np.uint64(0))
        elif TIES[messages.ties] == "zero":
            nonzero = np.where(alive, exists & ~zeros, np.uint64(0))
        active = np.zeros(-(-blocks // BLOCK) * BLOCK, bool)
        active[:blocks] = alive
        words = np.packbits(active, bitorder="little").view(np.uint64)
        kernels.place(signs, words, nonzero, messages.ballots, messages.geometry, self.first_block)
        return planes.packed

    def abstain(self) -> Packed:
        """Abstains in all of the tensor's blocks."""
        messages = self.messages
        kernels.abstain(messages.ballots, messages.geometry, self.first_block, self.spec.blocks)
        return ABSTAINED

    def write(self, out: Any, scale: float, *, cast: bool = False) -> None:
        """Writes ``scale`` times the verdict, or what was ``cast`` here, to a contiguous array.

        What was cast has the chunks' scales in the place of ``scale`` where messages have them.
        """
        messages = self.messages
        if cast and messages.averaged:
            scale = 1.0
        planes = messages.ballots if cast else messages.verdicts
        kernels.write_verdict(out, planes, messages.geometry, self.first_block, scale=scale)

    def fetch(self, *, cast: bool = False) -> tuple[Words, Words]:
        """The verdict's bits, for a device that unpacks them.

        Args:
            cast: those of this rank's ballot instead.

        Returns:
            signs: uint64[blocks], 1 = negative.
            keep: uint64[blocks], 0 where the verdict is 0.
        """
        messages, blocks = self.messages, self.spec.blocks
        signs = np.zeros(blocks, np.uint64)
        active = np.zeros(-(-blocks // BLOCK), np.uint64)
        nonzero = np.zeros(blocks, np.uint64) if messages.geometry.nonzero else None
        planes = messages.ballots if cast else messages.verdicts
        kernels.fetch(planes, messages.geometry, self.first_block, signs, active, nonzero)
        alive = np.unpackbits(active.view(np.uint8), count=blocks, bitorder="little").astype(bool)
        keep = np.where(alive, _ONES if nonzero is None else nonzero, np.uint64(0))
        return signs, keep
