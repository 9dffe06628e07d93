"""The vote in plain numpy, written from its definition and from nothing else.

A signal is one rank's values. Blocks of 64 coordinates that are zero on a rank, and chunks of 4096
that hold a NaN or an Inf there, are not voted on by that rank. Among the voters of a block, n of A
negative: the verdict is the sign of the majority, and ties and zeros go by the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 64
CHUNK = 4096


@dataclass
class Expected:
    """The verdict where it is `certain`; elsewhere a coin decides and it is +1 or -1."""

    verdict: np.ndarray
    certain: np.ndarray

    def check(self, got: np.ndarray, scale: float = 1.0, rtol: float = 0.0) -> None:
        got = np.asarray(got, dtype=np.float64)
        assert got.shape == self.verdict.shape, f"shape {got.shape}, not {self.verdict.shape}"
        np.testing.assert_allclose(got[self.certain], self.verdict[self.certain] * scale, rtol=rtol)
        np.testing.assert_allclose(np.abs(got[~self.certain]), scale, rtol=rtol)


def wide(signal: np.ndarray) -> np.ndarray:
    """A flat float64 copy in index order; exact for every floating type that is voted on."""
    return np.ascontiguousarray(signal).astype(np.float64).reshape(-1)


def active(signal: np.ndarray) -> np.ndarray:
    """Whether this rank votes on each coordinate."""
    flat = wide(signal)
    votes = np.zeros(flat.size, dtype=bool)
    for start in range(0, flat.size, BLOCK):
        chunk = flat[start // CHUNK * CHUNK :][:CHUNK]
        block = flat[start : start + BLOCK]
        votes[start : start + BLOCK] = np.isfinite(chunk).all() and (block != 0).any()
    return votes


def verdict(signals: list[np.ndarray], ties: str) -> Expected:
    """The verdict of these signals, in rank order."""
    shape = np.asarray(signals[0]).shape
    voting = np.array([active(s) for s in signals])
    signs = np.array([np.sign(np.nan_to_num(wide(s))) for s in signals]) * voting
    zeros = voting & (signs == 0)
    alive = voting.any(axis=0)
    total = signs.sum(axis=0)
    if ties == "zero":
        decided, certain = np.sign(total), np.ones(total.shape, dtype=bool)
    elif ties == "positive":
        decided = np.where(total + zeros.sum(axis=0) >= 0, 1.0, -1.0)
        certain = np.ones(total.shape, dtype=bool)
    else:
        # A zero is cast as one coin of the coordinate, turned round on every odd rank: the zeros
        # weigh |even - odd| votes together, and a coin decides only if that can tip the scale.
        odd = np.arange(len(signals)) % 2 == 1
        tipping = np.abs(zeros[~odd].sum(axis=0) - zeros[odd].sum(axis=0))
        decided, certain = np.sign(total), (np.abs(total) > tipping) | ~alive
    decided = np.where(alive, decided, 0.0)
    return Expected(decided.reshape(shape), certain.reshape(shape))


def mean_abs(signals: list[np.ndarray]) -> float:
    """The lower median over the voters of their mean absolute signal over finite chunks.

    Who has none, or only zeros, is no voter.
    """
    means = []
    for signal in signals:
        flat = wide(signal)
        chunks = [flat[i : i + CHUNK] for i in range(0, flat.size, CHUNK)]
        finite = [c for c in chunks if np.isfinite(c).all()]
        if finite:
            means.append(np.abs(np.concatenate(finite)).mean())
    return lower_median(means)


def lower_median(sizes: list[float]) -> float:
    """Of the sizes above 0; 0 if there are none."""
    ordered = sorted(size for size in sizes if size > 0)
    return float(ordered[(len(ordered) - 1) // 2]) if ordered else 0.0


def coin_bound(count: int) -> float:
    """|mean| of `count` fair +-1 coins stays below this but for one run in 1.7 million."""
    return 5.0 / np.sqrt(count)
