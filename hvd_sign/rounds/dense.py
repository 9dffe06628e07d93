"""The bucket that is not voted on: a dense fp32 allreduce, where the link outruns the kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hvd_sign.core import kernels
from hvd_sign.core.places import Messages
from hvd_sign.core.signals import Signals
from hvd_sign.core.stats import recorder
from hvd_sign.devices import Operand
from hvd_sign.rounds.base import Round, Subject
from hvd_sign.transports.communication import Pending


class DenseRound(Round):
    """Adds up the signals of all ranks in fp32.

    The verdict is the sign of their mean, 0 where that is exactly 0; with ``scale="mean_abs"`` it
    is the mean itself, which, unlike the scale of a vote, one rank can move as far as it likes. A
    rank that meets NaN or Inf sends zeros in that chunk; one without a gradient does not count in
    the mean. A sum beyond the range of fp32 becomes its largest number.
    """

    starts_ahead = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        bucket = self.bucket
        self.messages = Messages(bucket, self.options, kernels.Geometry(0, 1), parity=False)
        count = Signals.size(bucket)
        # Behind the signals: who met NaN or Inf, and who has joined.
        self._sent = np.zeros(count + 2, np.float32)
        self._received = np.zeros(count + 2, np.float32)
        self._signals = Signals(bucket, self._sent[:count])
        self._sums = Signals(bucket, self._received[:count])

    def run(
        self, step: int, operands: Sequence[Operand], *, joined: bool = False, write: bool = True
    ) -> Iterator[Pending]:
        """One sum over all ranks."""
        self.begin(step)
        with recorder.timed("pack_seconds"), self.span("pack"):
            chunks = self._signals.read([operand.device.read(operand) for operand in operands])
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
            if self.messages.scaled:
                self._sums.divide()
            else:
                np.sign(self._sums.floats, out=self._sums.floats)
        if write:
            self.write(operands)

    def write(self, operands: Sequence[Operand]) -> None:
        """Writes the verdict to the operands."""
        with recorder.timed("apply_seconds"):
            for operand, tensor in zip(operands, self._sums.tensors, strict=True):
                operand.device.take(operand, tensor)

    def scales(self) -> list[float]:
        """Nothing is left to be multiplied."""
        return [1.0] * len(self.bucket.specs)
