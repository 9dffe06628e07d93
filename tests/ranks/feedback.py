"""Error feedback in plain numpy, written from the paper's lines (arXiv 1901.09847)."""

from __future__ import annotations

import numpy as np

CHUNK = 4096
TINY = np.finfo(np.float32).tiny


def normal(x):
    return np.where(np.abs(x) < TINY, np.float32(0), x)


def abs_sum(values):
    """By the kernels' order of additions: lanes of a block, and then its tree, in fp32."""
    rows = np.zeros((-(-values.size // 64), 8, 8), np.float32)
    rows.reshape(-1)[: values.size] = np.abs(values)
    lanes = rows[:, 0]
    for row in range(1, 8):
        lanes = lanes + rows[:, row]
    four = lanes[:, :4] + lanes[:, 4:]
    blocks = (four[:, 0] + four[:, 2]) + (four[:, 1] + four[:, 3])
    return blocks.sum(dtype=np.float64)


def mean_abs(values):
    return np.float32(abs_sum(values) / values.size)


class Rank:
    """One rank's side of a tensor: e, and a momentum if there is one.

    Betas are of the signal and of the momentum; none: the signal is the gradient. Zeros that a coin
    would decide leave what is kept uncertain.
    """

    def __init__(self, size, ties, betas=()):
        self.e, self.m = np.zeros((2, size), np.float32)
        self.betas, self.ties, self.sent = betas, ties, np.float32(0)

    def step(self, g):
        """The signal p, NaN in chunks that are not finite; absent: the rank abstains."""
        if g is None:
            self.sent = np.float32(0)
            return np.zeros_like(self.e)
        signal, m = np.array(g).reshape(-1), self.m
        with np.errstate(all="ignore"):
            if self.betas:
                signal, m = (
                    normal(np.float32(b) * self.m + np.float32(1 - b) * signal) for b in self.betas
                )
            p = normal(signal + self.e)
        sound = np.zeros(p.size, bool)
        for start in range(0, p.size, CHUNK):
            run = slice(start, start + CHUNK)
            sound[run] = np.isfinite(p[run]).all() and np.isfinite(m[run]).all()
        self.sent = mean_abs(p[sound]) if sound.any() else np.float32(0)
        cast = np.sign(np.where(sound, p, 0))
        alive = np.repeat(np.array([np.any(c) for c in blocks(cast)], bool), 64)[: p.size]
        if self.ties == "positive":
            cast[(p == 0) & sound & alive] = 1
        with np.errstate(invalid="ignore"):
            self.e = np.where(sound, p - self.sent * cast, self.e)
        self.m = np.where(sound, m, self.m)
        return np.where(sound, p, np.float32("nan"))


def blocks(array):
    return [array[i : i + 64] for i in range(0, array.size, 64)]
