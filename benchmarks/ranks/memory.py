"""What a machine's memory lets a method do: the traffic that it must cause, and the bandwidth.

The model: a rank reads its gradient once and writes the result once, 2 x 4 d bytes, and reads each
byte that it sends and writes each byte that it receives, 2 x payload. Whatever else a method does
(copies between buffers, partial sums) it could do without, or in cache. The limit is those bytes /
the bandwidth that one rank has while all ranks use the memory at once, as they do in an exchange.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.kernels import COPY, yardsticks

COORDINATES = 1 << 24  # 64 MiB, more than caches hold
COPIES = 8


def traffic(size: float, payload: float) -> float:
    """Bytes that a rank must read and write to exchange `size` bytes by sending `payload`."""
    return 2 * size + 2 * payload


class Copier:
    """Copies an array, as the kernels' benchmark does for its yardstick.

    Attributes:
        bytes: read and written by one call of `seconds()`.
    """

    def __init__(self) -> None:
        x = np.ones(COORDINATES, np.float32)
        self._row = next(row for row in yardsticks(x) if row.label == COPY)
        self._row.call()
        self.bytes = COPIES * self._row.bytes

    def seconds(self) -> float:
        """The time that a few copies take."""
        begin = time.perf_counter()
        for _ in range(COPIES):
            self._row.call()
        return time.perf_counter() - begin
