"""Buckets that are not voted on: the ranks' numbers are added up by a dense allreduce."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import Sign
from hvd_sign.core import kernels
from hvd_sign.core.places import Messages
from hvd_sign.core.signals import Signals
from hvd_sign.core.stats import recorder
from hvd_sign.devices import Operand
from hvd_sign.exchanges.planning import DENSE
from hvd_sign.rounds.base import Round, Subject
from hvd_sign.transports.communication import Pending
from hvd_sign.votes import MajorityVote


class DenseRound(Round):
    """Adds up the signals of all ranks in fp32, where the link outruns the kernels.

    The verdict is the sign of their mean, 0 where that is exactly 0; with ``scale="mean_abs"`` it
    is the mean itself, which, unlike the scale of a vote, one rank can move as far as it likes. A
    rank that meets NaN or Inf sends zeros in that chunk; one without a gradient does not count in
    the mean. A sum beyond the range of fp32 becomes its largest number.
    """

    starts_ahead = True

    def __init__(self, subject: Subject, dtype: Any = np.float32) -> None:
        super().__init__(subject)
        bucket = self.bucket
        self.messages = Messages(bucket, self.options, kernels.Geometry(0, 1), parity=False)
        count = Signals.size(bucket)
        # Behind the signals: who met NaN or Inf, and who has joined.
        self._sent = np.zeros(count + 2, dtype)
        self._received = np.zeros(count + 2, dtype)
        self._signals = Signals(bucket, self._sent[:count])
        self._sums = Signals(bucket, self._received[:count])

    def run(
        self, step: int, operands: Sequence[Operand], *, joined: bool = False, write: bool = True
    ) -> Iterator[Pending]:
        """One sum over all ranks."""
        self.begin(step)
        with recorder.timed("pack_seconds"), self.span("pack"):
            chunks = self._signals.read([self.read(operand) for operand in operands])
        self.note_nonfinite(chunks)
        self._sent[-2:] = chunks > 0, joined
        with recorder.timed("exchange_seconds"), self.span("exchange"):
            yield self.transport.sum(self._sent, self._received)
        nonfinite, absent = self._received[-2:]
        self.verdict_flags = kernels.NONFINITE if nonfinite else 0
        if absent == self.transport.size:
            self.verdict_flags |= kernels.JOINED
        if not self._sums.given.any():
            self.verdict_flags |= kernels.ABSTAINED
        recorder.add(votes=1)
        with recorder.timed("apply_seconds"), self.span("apply"):
            self._sums.bound()
            self.decide()
        if write:
            self.write(operands)

    def read(self, operand: Operand) -> npt.NDArray[np.floating[Any]] | None:
        """A tensor's numbers; None: there are none."""
        return operand.device.read(operand)

    def decide(self) -> None:
        """Makes of the sums what the tensors get."""
        if self.messages.scaled:
            self._sums.divide()
        else:
            np.sign(self._sums.floats, out=self._sums.floats)

    def write(self, operands: Sequence[Operand]) -> None:
        """Writes the verdict to the operands."""
        with recorder.timed("apply_seconds"):
            for operand, tensor in zip(operands, self._sums.tensors, strict=True):
                operand.device.take(operand, tensor)

    def scales(self) -> list[float]:
        """Nothing is left to be multiplied."""
        return [1.0] * len(self.bucket.specs)


class MeanRound(DenseRound):
    """The mean of all ranks' gradients in the place of a verdict, as Horovod's ``Average``.

    It is taken in fp32, or in fp64 where any of the bucket's tensors is in it, of the gradients as
    they are: no algorithm sees them, and the mean carries whatever loss scale they do. A rank
    without a gradient, one that has joined, and a chunk in which a rank met NaN or Inf count as
    zeros.
    """

    def __init__(self, subject: Subject) -> None:
        options = replace(
            subject.options, exchange=DENSE, local="vote", fallback=None, scale="none"
        )
        wide = any(spec.dtype == "float64" for spec in subject.bucket.specs)
        super().__init__(
            subject._replace(options=options, rule=MajorityVote(), algorithm=Sign()),
            np.float64 if wide else np.float32,
        )

    def read(self, operand: Operand) -> npt.NDArray[np.floating[Any]] | None:
        """A tensor's numbers, in fp64 for fp64."""
        return operand.device.numbers(operand)

    def decide(self) -> None:
        """Divides by the number of ranks."""
        self._sums.floats /= self.transport.size

    def write(self, operands: Sequence[Operand]) -> None:
        """Writes the mean to the operands, whose factors are for verdicts."""
        super().write([operand._replace(factor=1.0) for operand in operands])


class WarmingRound(MeanRound):
    """The mean of gradients that will be voted on later, of which the algorithm learns already.

    Args:
        voting: the bucket's round of votes, whose states are fed.
    """

    def __init__(self, voting: Round) -> None:
        super().__init__(
            Subject(
                voting.bucket,
                voting.rule,
                voting.algorithm,
                voting.options,
                voting.transport,
                voting.stream,
            )
        )
        self._voting = voting
        self.states = voting.states

    def run(
        self, step: int, operands: Sequence[Operand], *, joined: bool = False, write: bool = True
    ) -> Iterator[Pending]:
        """One sum over all ranks, and a ballot that is packed for the algorithm's sake alone."""
        voting = self._voting
        if voting.algorithm.planes:
            voting.begin(step)
            states = self.states.of(operands)
            rows = zip(operands, voting.messages.places, states, strict=True)
            with recorder.timed("pack_seconds"), self.span("pack"):
                for operand, place, state in rows:
                    operand.pack(place, voting.algorithm, state)
                    if state is not None:
                        state.drop_residual()  # the mean has said all of it
        yield from super().run(step, operands, joined=joined, write=write)
