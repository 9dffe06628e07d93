"""The ballot box of a bucket: where its tensors cast their signs and find the verdict."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hvd_sign import kernels
from hvd_sign.algorithms import Algorithm
from hvd_sign.buckets import Bucket, TensorSpec
from hvd_sign.observe import observers
from hvd_sign.options import TIES, VoteOptions
from hvd_sign.stats import recorder
from hvd_sign.transports.base import Pending, Transport
from hvd_sign.votes import VoteRule

logger = logging.getLogger("hvd_sign")

_abstention_told = False


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

    @property
    def mean_abs(self) -> float:
        """Over those coordinates, as it travels in fp32; 0 where there are none."""
        return min(self.abs_sum / self.finite, LARGEST) if self.finite else 0.0


LARGEST = float(np.finfo(np.float32).max)
ABSTAINED = Cast(0, 0, 0.0)


class Feed(NamedTuple):
    """A voter's arrays for those who can read and write them without asking it.

    Attributes:
        signal: contiguous host array, or None to abstain.
        out: contiguous host array for the verdict, or None if the voter's ``obey()`` is needed.
        factor: multiplies the verdict in ``out``.
    """

    signal: Any
    out: Any
    factor: float


class Voter(Protocol):
    """A tensor of one rank, as a ballot box sees it; bindings and devices have their own."""

    def feed(self) -> Feed | None:
        """The arrays behind it; None if only ``cast()`` and ``obey()`` know."""
        ...

    def cast(self, slot: Slot) -> Cast:
        """Puts the tensor's signs into the slot."""
        ...

    def obey(self, slot: Slot, scale: float) -> None:
        """Takes ``scale`` times the verdict from the slot."""
        ...

    def read(self) -> npt.NDArray[np.float32] | None:
        """The signal in host memory, as fp32; None to abstain."""
        ...

    def take(self, values: npt.NDArray[np.float32]) -> None:
        """Takes numbers, float32[size], in the place of a verdict."""
        ...


class HostVoter:
    """A tensor in host memory.

    Args:
        signal: contiguous fp32, fp64, fp16 or bf16 array, or None to abstain.
        out: where the verdict is written; may be ``signal`` itself; None drops the verdict.
        factor: multiplies the verdict.
    """

    def __init__(self, signal: Any, out: Any, factor: float = 1.0) -> None:
        self.signal = signal
        self.out = out
        self.factor = factor

    def feed(self) -> Feed | None:
        """The arrays themselves."""
        return Feed(self.signal, self.out, self.factor)

    def cast(self, slot: Slot) -> Cast:
        """Lets the algorithm pack its signal."""
        if self.signal is None:
            slot.abstain()
            return ABSTAINED
        return slot.box.algorithm.cast(self.signal, slot)

    def obey(self, slot: Slot, scale: float) -> None:
        """Overwrites ``out``."""
        if self.out is not None:
            slot.write(self.out, scale * self.factor)

    def read(self) -> npt.NDArray[np.float32] | None:
        """The signal in fp32; what is too large for it becomes Inf."""
        if self.signal is None:
            return None
        with np.errstate(over="ignore"):
            return np.asarray(self.signal).astype(np.float32, copy=False)

    def take(self, values: npt.NDArray[np.float32]) -> None:
        """Overwrites ``out``."""
        if self.out is not None:
            if self.factor != 1.0:
                values = values * np.float32(self.factor)
            self.out[...] = values.reshape(self.out.shape)


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
                parity=box.parity,
                ordinal=self.spec.ordinal,
                want_abs=box.scaled,
            )
        )

    def abstain(self) -> None:
        """Casts nothing in all of the tensor's blocks."""
        kernels.abstain(self.box.ballots, self.box.geometry, self.first_block, self.spec.blocks)

    def write(self, out: Any, scale: float) -> None:
        """Writes ``scale`` times the verdict to a contiguous host array."""
        kernels.write_verdict(
            out, self.box.verdicts, self.box.geometry, self.first_block, scale=scale
        )


class BallotBox(ABC):
    """A bucket on one stream; what it needs is made once and used at every step.

    Args:
        bucket: the tensors.
        rule: decides.
        algorithm: chooses the signals.
        options: ties, exchange, seed, scale.
        transport: connects the voters.
        stream: the stream's number, told in every message.

    Attributes:
        ballots: uint8, the messages that slots pack into, laid out by ``geometry``.
        verdicts: uint8, the messages that slots take the verdict from, laid out likewise.
        step: number of the vote under way.
        title: what the log calls that vote; None: by its step and bucket.
        zero_key: of the coins that cast zeros in this step.
        tie_key: of the coins that decide ties in this step.
        parity: whether this rank's zero coins are turned round, so that two ranks' zeros cancel.
        chunks: how many pieces of the bucket travel one after another.
    """

    chunks = 1
    title: str | None = None
    geometry: kernels.Geometry
    ballots: npt.NDArray[np.uint8]
    verdicts: npt.NDArray[np.uint8]

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
        self.stream = stream
        self.ties = TIES.index(options.ties)
        self.scaled = options.scale == "mean_abs"
        self.slots = [
            Slot(self, spec, int(first))
            for spec, first in zip(bucket.specs, bucket.first_blocks, strict=False)
        ]
        self.step = self.zero_key = self.tie_key = 0
        self.parity = bool(transport.rank & 1)
        self.verdict_flags = 0

    @abstractmethod
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

    @abstractmethod
    def scales(self) -> list[float]:
        """Each tensor's scale in the last verdict."""

    def begin(self, step: int) -> None:
        """Begins a vote: its number, and its coins."""
        self.step = step
        self.zero_key = kernels.coin_key(self.options.seed, "zero", step)
        self.tie_key = kernels.coin_key(self.options.seed, "tie", step)

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

    def obey(self, voters: Sequence[Voter]) -> None:
        """Writes the verdict to the voters."""
        with recorder.timed("apply_seconds"):
            for voter, slot, scale in zip(voters, self.slots, self.scales(), strict=True):
                voter.obey(slot, scale)

    @property
    def nonfinite(self) -> bool:
        """Whether any rank met NaN or Inf."""
        return bool(self.verdict_flags & kernels.NONFINITE)

    @property
    def all_joined(self) -> bool:
        """Whether every rank has joined."""
        return bool(self.verdict_flags & kernels.JOINED)


def combine(flags: Sequence[int]) -> int:
    """Flags of several messages in one: joined or abstained if all are, non-finite if any is."""
    every = kernels.JOINED | kernels.ABSTAINED
    anyone = 0
    for flag in flags:
        every &= flag
        anyone |= flag
    return every | (anyone & kernels.NONFINITE)
