"""What the literature says of votes by sign, on packed bits: where they gain, where they fail."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hvd_sign import majority_vote, pack_signs
from hvd_sign.algorithms import Algorithm, Sign, Signum, stepped


class Workers:
    """Voters in one process, each with an algorithm's state of its own."""

    def __init__(self, count: int, size: int, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._size = size
        self._states = [
            {plane: np.zeros(size, np.float32) for plane in algorithm.planes} for _ in range(count)
        ]
        self._step = 0

    def verdict(self, gradients: list[np.ndarray]) -> np.ndarray:
        ballots = []
        for worker, gradient in enumerate(gradients):
            signal, new = stepped(self._algorithm, gradient, self._states[worker])
            self._states[worker] = new
            ballots.append(pack_signs(signal))
        self._step += 1
        return majority_vote(np.array(ballots), self._size, step=self._step)


@pytest.mark.parametrize("workers", [9, 27])
def test_the_papers_quadratic_gains_by_the_root_of_the_number_of_workers(workers):
    """|x|^2 / 2 in 1,000 dimensions with unit noise, Bernstein et al. 2018, figure 1.

    A worker's sign has the mean sqrt(2 / pi) x near the minimum, and one of M decides where the
    others are tied: the verdict's mean is M C(M-1, (M-1)/2) / 2^(M-1) times that, some
    sqrt(2 M / pi). Steps of size lr balance where E x^2 is lr over twice that slope.
    """
    size, lr, steps = 1000, 0.005, 3000
    rng = np.random.default_rng(workers)
    floors = []
    for count in (1, workers):
        votes, x = Workers(count, size, Sign()), np.full(size, 0.1, np.float32)
        seen = []
        for step in range(steps):
            noise = rng.standard_normal((count, size), np.float32)
            x -= np.float32(lr) * votes.verdict(list(x + noise))
            if step > steps // 2:
                seen.append((x**2).mean())
        floors.append(np.mean(seen))
        decisive = count * math.comb(count - 1, (count - 1) // 2) / 2 ** (count - 1)
        floor = lr / (2 * decisive * math.sqrt(2 / math.pi))
        assert floors[-1] == pytest.approx(floor, rel=0.05)
    gain = floors[0] / floors[1]
    assert 0.75 * math.sqrt(workers) < gain < 1.05 * math.sqrt(workers)


@pytest.mark.parametrize("algorithm", [Sign(), Signum(0.9)], ids=repr)
def test_the_vote_finds_the_median_of_the_workers_not_their_mean(algorithm):
    """Three workers whose losses are (x - 1)^2, (x - 2)^2 and (x - 10)^2: the mean's is at 13/3."""
    votes, x = Workers(3, 64, algorithm), np.full(64, 8.0, np.float32)
    for _ in range(1000):
        x -= np.float32(0.01) * votes.verdict([x - np.float32(at) for at in (1, 2, 10)])
    assert np.abs(x - 2).max() < 0.1


def test_skewed_noise_turns_the_sign_round_and_momentum_does_not():
    """A gradient of 4 with probability 1/4, else -1: its mean is 1/4, its sign's -1/2."""
    moved = {}
    for algorithm in (Sign(), Signum(0.99)):
        rng = np.random.default_rng(1)
        votes, x = Workers(1, 1000, algorithm), np.zeros(1000, np.float32)
        for step in range(2000):
            gradient = np.where(rng.random(1000) < 0.25, 4, -1).astype(np.float32)
            if step >= 1000:  # the momentum's beginning is no part of it
                x -= votes.verdict([gradient])
            else:
                votes.verdict([gradient])
        moved[algorithm.name] = x.mean() / 1000
    assert moved["sign"] == pytest.approx(0.5, abs=0.02)  # uphill
    assert moved["signum"] < -0.7  # downhill: the mean is 1.6 of the running mean's deviations
