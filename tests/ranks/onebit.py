"""Error feedback on both sides in plain numpy, from the paper's lines (arXiv 2102.02888)."""

from __future__ import annotations

import numpy as np
from feedback import CHUNK, abs_sum, blocks, normal


class Saying:
    """One who says numbers by signs and a scale a chunk, and keeps the rest."""

    def __init__(self, size, ties):
        self.left, self.ties = np.zeros(size, np.float32), ties

    def say(self, s, sound):
        """What is said; nothing in chunks that are not sound, whose rest stays."""
        with np.errstate(all="ignore"):
            p = normal(s + self.left)
        said = np.zeros_like(p)
        for start in range(0, p.size, CHUNK):
            run = slice(start, start + CHUNK)
            if not sound[run].all():
                continue
            cast = np.sign(p[run])
            voting = np.repeat([np.any(b) for b in blocks(cast)], 64)[: cast.size]
            if self.ties == "positive":
                cast[(cast == 0) & voting] = 1
            if voting.any():
                scale = np.float32(abs_sum(p[run]) / voting.sum())
                said[run] = scale * cast.astype(np.float32)
        self.left = np.where(sound, p - said, self.left)
        return said


class Rank(Saying):
    def __init__(self, size, ties, beta=0.0):
        super().__init__(size, ties)
        self.beta, self.m = beta, np.zeros(size, np.float32)

    def step(self, g):
        if g is None:
            return np.zeros_like(self.left)
        signal = np.array(g).reshape(-1)
        with np.errstate(all="ignore"):
            if self.beta:
                b, c = np.float32(self.beta), np.float32(1 - self.beta)
                signal = normal(b * self.m + c * signal)
            finite = np.isfinite(signal + self.left)
        starts = np.arange(0, finite.size, CHUNK)
        sound = np.repeat(np.logical_and.reduceat(finite, starts), CHUNK)[: finite.size]
        if self.beta:
            self.m = np.where(sound, signal, self.m)
        return self.say(signal, sound)


class World:
    """All ranks' sides of one tensor, and the side of those who tally."""

    def __init__(self, ranks, size, ties="zero", beta=0.0):
        self.ranks = [Rank(size, ties, beta) for _ in range(ranks)]
        self.owner = Saying(size, ties)

    def step(self, given):
        if not self.owner.left.size:
            return self.owner.left
        said = [rank.step(g) for rank, g in zip(self.ranks, given, strict=True)]
        total = np.zeros_like(said[0])
        for one in said:
            total = normal(total + one)
        alive = np.repeat(
            [
                any(one[start : start + CHUNK].any() for one in said)
                for start in range(0, total.size, CHUNK)
            ],
            CHUNK,
        )[: total.size]
        return self.owner.say(total / np.float32(len(said)), alive)
