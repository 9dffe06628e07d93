"""The hierarchical vote in plain numpy, coins and all, written from its definition alone."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import reference

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
STREAMS = {"zero": 1, "tie": 2, "node": 3}


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def coins(stream: str, size: int, name: str, seed: int, step: int) -> np.ndarray:
    """+1 or -1 for each coordinate of the only tensor of the vote called `name`."""
    with np.errstate(over="ignore"):
        number = np.uint64(STREAMS[stream])
        inner = mix(mix(np.uint64(seed) + GOLDEN) + GOLDEN * number)
        key = mix(inner ^ mix(np.uint64(crc32(name.encode()) << 32 | step) + GOLDEN))
        start = mix(key ^ mix(np.uint64(0) + GOLDEN))
        blocks = np.arange(1, -(-size // 64) + 1, dtype=np.uint64)
        words = mix(start + GOLDEN * blocks)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:size]
    return 1 - 2 * bits.astype(int)


def majority(votes: np.ndarray, alive: np.ndarray, ties: str, coin: np.ndarray) -> np.ndarray:
    """The sign of the sum of votes in {-1, 0, +1}; 0 where nobody is alive."""
    total = votes.sum(axis=0)
    tied = {"zero": 0, "positive": 1, "coin": coin}[ties]
    return np.where(alive, np.where(total == 0, tied, np.sign(total)), 0)


def ballot(signal: np.ndarray, ties: str, coin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What one voter casts, zeros decided, and where it is active."""
    active = reference.active(signal)
    signs = np.sign(np.nan_to_num(reference.wide(signal)))
    zero = {"zero": 0, "positive": 1, "coin": coin}[ties]
    return np.where(active, np.where(signs == 0, zero, signs), 0), active


def nodes_of(layout: list) -> list[list[int]]:
    """The ranks of each node, in order of the nodes' first ranks."""
    return [[r for r, n in enumerate(layout) if n == name] for name in dict.fromkeys(layout)]


def mean(signals: list[np.ndarray]) -> np.ndarray:
    """In fp32, added in the order of ranks; chunks of a rank that hold NaN or Inf are zeros."""
    total = None
    for signal in signals:
        with np.errstate(over="ignore"):
            values = signal.reshape(-1).astype(np.float32)
        for start in range(0, values.size, reference.CHUNK):
            if not np.isfinite(values[start : start + reference.CHUNK]).all():
                values[start : start + reference.CHUNK] = 0
        total = values if total is None else total + values
    return total / np.float32(len(signals))


def verdict(
    signals: list[np.ndarray],
    layout: list,
    ties: str,
    local: str,
    *,
    name: str,
    seed: int,
    step: int,
) -> np.ndarray:
    """The verdict of the nodes, flat."""
    size = signals[0].size
    coin = {stream: coins(stream, size, name, seed, step) for stream in STREAMS}
    cast, alive = [], []
    for number, ranks in enumerate(nodes_of(layout)):
        turn = -1 if number % 2 else 1
        if local == "mean" and len(ranks) > 1:
            signal = mean([signals[rank] for rank in ranks])
            votes, active = ballot(signal, ties, turn * coin["zero"])
        else:
            rows = [
                ballot(signals[rank], ties, turn * (-1 if place % 2 else 1) * coin["zero"])
                for place, rank in enumerate(ranks)
            ]
            active = np.any([row[1] for row in rows], axis=0)
            votes = rows[0][0]
            if len(ranks) > 1:
                votes = majority(
                    np.array([row[0] for row in rows]), active, ties, turn * coin["node"]
                )
        cast.append(votes)
        alive.append(active)
    return majority(np.array(cast), np.any(alive, axis=0), ties, coin["tie"])


def mean_abs(signals: list[np.ndarray], layout: list) -> float:
    """The nodes' lower median, each node's size being the lower median of its ranks' sizes."""
    rows = [[signals[rank] for rank in ranks] for ranks in nodes_of(layout)]
    return reference.lower_median([reference.mean_abs(row) for row in rows])
