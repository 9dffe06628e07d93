"""A bucket's signals as numbers, for those who add them up instead of counting their signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.core.buckets import Bucket
from hvd_sign.core.places import CHUNK


class Signals:
    """All coordinates of a bucket, and behind them how many voters gave each tensor.

    Args:
        bucket: the tensors.
        floats: float32 or float64[Signals.size(bucket)], where they stand.
    """

    def __init__(self, bucket: Bucket, floats: npt.NDArray[np.floating[Any]]) -> None:
        self.floats = floats
        ends = np.cumsum([spec.size for spec in bucket.specs])
        self.tensors = [
            floats[end - spec.size : end] for spec, end in zip(bucket.specs, ends, strict=True)
        ]
        self.given = floats[floats.size - len(bucket.specs) :]
        self._finite = [spec.size for spec in bucket.specs]

    @staticmethod
    def size(bucket: Bucket) -> int:
        """How many numbers a bucket needs."""
        return sum(spec.size for spec in bucket.specs) + len(bucket.specs)

    def read(self, signals: Sequence[npt.NDArray[np.floating[Any]] | None]) -> int:
        """Takes this rank's signals; chunks of 4096 coordinates with NaN or Inf become zeros.

        Args:
            signals: one for each tensor, None where there is none.

        Returns:
            How many chunks those are.
        """
        chunks = 0
        for position, (signal, tensor) in enumerate(zip(signals, self.tensors, strict=True)):
            self.given[position] = signal is not None
            if signal is None:
                tensor[:] = 0
                continue
            tensor[:] = signal.reshape(-1)
            self._finite[position] = tensor.size
            finite = np.isfinite(tensor)
            if not finite.all():
                bad = np.unique(np.flatnonzero(~finite) // CHUNK)
                for chunk in bad:
                    coordinates = tensor[chunk * CHUNK : (chunk + 1) * CHUNK]
                    coordinates[:] = 0
                    self._finite[position] -= coordinates.size
                chunks += len(bad)
        return chunks

    def mean_abs(self) -> list[float]:
        """Of each tensor that was read, over its finite chunks; 0 where there are none."""
        rows = zip(self.tensors, self._finite, strict=True)
        return [float(np.abs(t).sum(dtype=np.float64) / max(finite, 1)) for t, finite in rows]

    def add(self, others: npt.NDArray[np.floating[Any]]) -> None:
        """Adds another voter's numbers to these."""
        with np.errstate(over="ignore", invalid="ignore"):  # bound() mends it
            self.floats += others

    def bound(self) -> None:
        """Makes the largest number of what grew beyond it, and 0 of what did so on either side."""
        if not np.isfinite(self.floats).all():
            np.nan_to_num(self.floats, copy=False)

    def divide(self) -> None:
        """Makes a mean of each sum: divides it by the number of voters that gave the tensor."""
        for tensor, given in zip(self.tensors, self.given, strict=True):
            if given:
                tensor /= given
