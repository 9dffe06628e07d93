"""The ballot box over the native engine: chunks are packed, sent, tallied and applied at once.

Used where the engine was compiled for the MPI that is running and all ranks have it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hvd_sign import kernels
from hvd_sign._version import __version__
from hvd_sign.algorithms import Algorithm, Sign
from hvd_sign.ballots import BallotBox, Voter
from hvd_sign.buckets import Bucket
from hvd_sign.errors import VoteError
from hvd_sign.exchanges import get_exchange
from hvd_sign.observe import observers
from hvd_sign.options import VoteOptions, choose
from hvd_sign.planning import planned_chunk_blocks
from hvd_sign.stats import recorder
from hvd_sign.transports.base import Pending, Transport
from hvd_sign.transports.mpi import MpiTransport
from hvd_sign.votes import MajorityVote, VoteRule

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger("hvd_sign")

ENGINE = "HVD_SIGN_ENGINE"

CHUNK_BLOCKS = 25_000
"""Blocks of 64 coordinates in a chunk of the pipeline at most: 1.6 million coordinates, 200 KB of
signs. Where the link was measured, a chunk may be planned to be smaller."""

SLOTS = 6
"""Chunks under way at most."""

MOST_THREADS = 8
"""Unless asked for: fewer fill the memory's bandwidth."""


def load_engine(mpi: Any) -> Any:
    """The compiled engine's module, or None, with a line in the log that says why.

    ``HVD_SIGN_ENGINE=python`` does without it; ``native`` insists on it.

    Raises:
        ValueError: HVD_SIGN_ENGINE is something else.
        RuntimeError: it is ``native``, but the engine cannot be used.
    """
    wanted = choose(
        ENGINE,
        os.environ.get(ENGINE, "auto"),
        ("auto", "native", "python"),
    )
    if wanted == "python":
        return None
    reason = None
    try:
        from hvd_sign import _engine
    except ImportError as error:
        reason = f"it was not built ({error}); install hvd_sign again with mpicxx on PATH"
    else:
        running = mpi.Get_library_version().rstrip("\0")
        if _engine.__version__ != __version__:
            reason = f"it is of version {_engine.__version__}, hvd_sign of {__version__}"
        elif _engine.library_version().rstrip("\0") != running:
            reason = (
                f"it runs on {_engine.library_version()!r}, but mpi4py on {running!r}; build both "
                "with the same MPI"
            )
        else:
            return _engine
    if wanted == "native":
        raise RuntimeError(
            f"HVD_SIGN_ENGINE=native, but the native engine cannot be used: {reason}"
        )
    logger.warning("votes go through mpi4py, not through the native engine: %s", reason)
    return None


@dataclass(frozen=True)
class Place:
    """Where a rank runs: the host, the cores that it may use, and what HVD_SIGN_THREADS says."""

    host: str
    cores: frozenset[int]
    said: str | None

    @classmethod
    def own(cls) -> Place:
        """This process's."""
        affinity = getattr(os, "sched_getaffinity", None)
        cores = range(os.cpu_count() or 1) if affinity is None else affinity(0)
        return cls(socket.gethostname(), frozenset(cores), os.environ.get("HVD_SIGN_THREADS"))


def threads(places: Sequence[Place], rank: int) -> int:
    """How many threads pack and apply: HVD_SIGN_THREADS, else the cores that the rank was given.

    Args:
        places: of all ranks. Cores that several ranks may use are shared out among them.
        rank: whose threads.

    Raises:
        ValueError: HVD_SIGN_THREADS is not a number above 0, on any rank.
    """
    for number, place in enumerate(places):
        if place.said is not None and not (place.said.isdecimal() and int(place.said) > 0):
            raise ValueError(
                f"HVD_SIGN_THREADS: expected 1 or more, got {place.said!r} on rank {number}"
            )
    mine = places[rank]
    if mine.said is not None:
        return int(mine.said)
    sharing = sum(place.host == mine.host and bool(place.cores & mine.cores) for place in places)
    return max(1, min(len(mine.cores) // sharing, MOST_THREADS))


abandoned: list[Any] = []
"""What MPI may still write into, though nobody waits for it: kept until the process ends."""


class Pipeline:
    """A native stream, on two communicators of its own.

    Args:
        module: what ``load_engine()`` returned.
        engine: the process's native engine.
        communicator: duplicated twice; collective.
    """

    def __init__(self, module: Any, engine: Any, communicator: MPI.Intracomm) -> None:
        from mpi4py import MPI

        self.module = module
        self._engine = engine
        self._communicators = [communicator.Dup(), communicator.Dup()]
        addresses = [MPI._addressof(private) for private in self._communicators]
        self._stream = engine.open(*addresses)
        self.given_up: list[Any] = []

    def submit(self, vote: Any) -> None:
        """Queues a vote."""
        self._engine.submit(self._stream, vote)

    def close(self, *, release: bool) -> None:
        """Ends the stream; frees the communicators if nothing is under way."""
        self._engine.close(self._stream)
        if release:
            for communicator in self._communicators:
                communicator.Free()
        else:
            abandoned.append(self)


def can_pipeline(
    rule: VoteRule, algorithm: Algorithm, options: VoteOptions, transport: Transport
) -> bool:
    """Whether the native engine can hold such votes."""
    return (
        isinstance(transport, MpiTransport)
        and transport.pipeline is not None
        and type(rule) is MajorityVote
        and type(algorithm) is Sign
        and options.exchange in ("sharded", "allgather")
    )


class PipelinedBox(BallotBox):
    """A bucket whose chunks the native engine moves.

    Args:
        chunk_blocks: blocks in a chunk; planned if None.

    ``ballots`` and ``verdicts`` hold the whole bucket in one message each, for voters that pack
    and obey by themselves.
    """

    def __init__(
        self,
        bucket: Bucket,
        rule: VoteRule,
        algorithm: Algorithm,
        options: VoteOptions,
        transport: Transport,
        stream: int,
        *,
        chunk_blocks: int | None = None,
    ) -> None:
        super().__init__(bucket, rule, algorithm, options, transport, stream)
        if chunk_blocks is None:
            chunk_blocks = planned_chunk_blocks(bucket.blocks, CHUNK_BLOCKS, options, transport)
        assert isinstance(transport, MpiTransport)
        assert transport.pipeline is not None
        self._pipeline = transport.pipeline
        self.geometry = kernels.Geometry(bucket.blocks, 1, options.ties == "zero", 0)
        self.ballots = np.zeros(self.geometry.total_bytes, np.uint8)
        self.verdicts = np.zeros(self.geometry.total_bytes, np.uint8)
        self._plan = self._pipeline.module.plan(
            tensors=[(slot.first_block, slot.spec.size, slot.spec.ordinal) for slot in self.slots],
            blocks=bucket.blocks,
            ties=self.ties,
            sharded=get_exchange(options.exchange).name == "sharded",
            scaled=self.scaled,
            rank=transport.rank,
            voters=transport.size,
            stream=stream,
            bucket=bucket.index,
            chunk_blocks=chunk_blocks,
            slots=SLOTS,
            ballots=self.ballots,
            verdicts=self.verdicts,
        )
        self._vote = self._pipeline.module.vote(self._plan)
        self.chunks = self._plan.chunks

    def decide(
        self, step: int, voters: Sequence[Voter], *, joined: bool = False, obey: bool = True
    ) -> Iterator[Pending]:
        """One vote, handed to the engine; what it cannot write to is written at the end."""
        self.begin(step)
        direct = obey and not self.scaled
        feeds, taken = [], []
        with recorder.timed("pack_seconds"):
            for voter, slot in zip(voters, self.slots, strict=True):
                feed = voter.feed()
                signal = None if feed is None else feed.signal
                out = feed.out if direct and feed is not None else None
                factor = 1.0 if feed is None else feed.factor
                # Whoever has no signal for the engine packs, or abstains, by itself.
                cast = voter.cast(slot) if signal is None else (0, 0, 0.0)
                signal, bfloat16 = kernels.as_bits(signal)
                out, _ = kernels.as_bits(out, bfloat16)
                feeds.append((signal, out, factor, bfloat16, *cast))
                taken.append(out is not None)
        if not self._vote.test():  # a joining rank serves before its last step has ended
            self._vote = self._pipeline.module.vote(self._plan)
        vote = self._vote
        vote.begin(
            feeds=feeds,
            step=step,
            zero_key=self.zero_key,
            tie_key=self.tie_key,
            joined=joined,
            keep=not all(taken),
            trace=observers.timeline is not None,
        )
        self._pipeline.submit(vote)
        try:
            yield vote
        except GeneratorExit:  # given up, but not by the engine, which may yet read and write
            self._pipeline.given_up.append(vote)
            raise
        if vote.error:
            raise VoteError(vote.error)
        self.verdict_flags = vote.flags
        totals = vote.totals()
        recorder.add(votes=1, **totals)
        self.log_abstention(totals["nonfinite_chunks"])
        if observers.timeline is not None:
            for what, chunk, begin, end in vote.spans():
                observers.timeline.span(
                    what, self.stream, begin, end, step=step, bucket=self.bucket.index, chunk=chunk
                )
        if obey and not all(taken):
            with recorder.timed("apply_seconds"):
                rows = zip(voters, self.slots, self.scales(), taken, strict=True)
                for voter, slot, scale, done in rows:
                    if not done:
                        voter.obey(slot, scale)

    def scales(self) -> list[float]:
        """From the last chunk's trailers."""
        return list(self._plan.scales) if self.scaled else [1.0] * len(self.slots)
