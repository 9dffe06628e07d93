"""The wire convention once more, in Python integers: what the kernels' tests expect.

Written from the documented layout alone; nothing here calls the kernels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from hvd_sign.core import kernels

COIN, ZERO, POSITIVE = 0, 1, 2
MASK = (1 << 64) - 1
DTYPES = ("float32", "float64", "float16", "bfloat16")


@pytest.fixture(params=kernels.implementations())
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every implementation that this machine has."""
    before = kernels.implementation()
    kernels.set_implementation(request.param)
    yield request.param
    kernels.set_implementation(before)


class Kind(NamedTuple):
    """The bits of a float type."""

    bits: type
    sign: int
    infinity: int


KINDS = {
    "float32": Kind(np.uint32, 1 << 31, 0x7F80_0000),
    "float64": Kind(np.uint64, 1 << 63, 0x7FF0_0000_0000_0000),
    "float16": Kind(np.uint16, 1 << 15, 0x7C00),
    "bfloat16": Kind(np.uint16, 1 << 15, 0x7F80),
}


class Block(NamedTuple):
    """One block as it travels."""

    signs: int
    active: bool
    nonzero: int


NOTHING = Block(0, False, 0)


def mix(x: int) -> int:
    """SplitMix64's finaliser."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


GOLDEN = 0x9E3779B97F4A7C15


def coin_key(seed: int, stream: str, step: int) -> int:
    number = {"zero": 1, "tie": 2, "node": 3}[stream]
    inner = mix((mix((seed + GOLDEN) & MASK) + GOLDEN * number) & MASK)
    return mix(inner ^ mix((step + GOLDEN) & MASK))


def coin_word(key: int, ordinal: int, block: int) -> int:
    start = mix(key ^ mix((ordinal + GOLDEN) & MASK))
    return mix((start + GOLDEN * (block + 1)) & MASK)


def word(bits: Iterable[Any]) -> int:
    """Bit i is the i-th truth."""
    return sum(1 << i for i, bit in enumerate(bits) if bit)


def pack(
    raw: Sequence[int], kind: Kind, ties: int, *, key: int, parity: int, ordinal: int
) -> tuple[list[Block], int, int]:
    """The blocks of a tensor of these bit patterns, its non-finite chunks, its finite count."""
    blocks: list[Block] = []
    nonfinite = finite = 0
    for start in range(0, len(raw), 4096):
        chunk = raw[start : start + 4096]
        count = -(-len(chunk) // 64)
        if any(x & ~kind.sign >= kind.infinity for x in chunk):
            nonfinite += 1
            blocks += [NOTHING] * count
            continue
        finite += len(chunk)
        for at in range(0, len(chunk), 64):
            number = (start + at) // 64
            coins = coin_word(key, ordinal, number) ^ (MASK if parity & 1 else 0)
            blocks.append(_pack_block(chunk[at : at + 64], kind, ties, coins))
    return blocks, nonfinite, finite


def _pack_block(raw: Sequence[int], kind: Kind, ties: int, coins: int) -> Block:
    zero = [x & ~kind.sign == 0 for x in raw]
    if all(zero):
        return NOTHING
    zeros = word(zero)
    signs = word(x & kind.sign for x in raw) & ~zeros
    if ties == COIN:
        signs |= coins & zeros
    return Block(signs, True, word(not z for z in zero))


class Layout(NamedTuple):
    """Where things are in a message, by the documented rule."""

    blocks: int
    shards: int
    nonzero: bool = False
    floats: int = 0

    @property
    def shard_blocks(self) -> int:
        return max(1, -(-self.blocks // self.shards))

    @property
    def active(self) -> int:
        return 48 + 8 * self.shard_blocks

    @property
    def second(self) -> int:
        return self.active + -(-self.shard_blocks // 64) * 8

    @property
    def trailer(self) -> int:
        return self.second + (8 * self.shard_blocks if self.nonzero else 0)

    @property
    def message(self) -> int:
        return self.trailer + -(-self.floats * 4 // 8) * 8

    def geometry(self) -> kernels.Geometry:
        return kernels.Geometry(self.blocks, self.shards, self.nonzero, self.floats)

    def buffer(self) -> np.ndarray:
        return np.zeros(self.message * self.shards, np.uint8)

    def read(self, buffer: np.ndarray, block: int) -> Block:
        shard, at = divmod(block, self.shard_blocks)
        message = buffer[shard * self.message :][: self.message].tobytes()
        (signs,) = struct.unpack_from("<Q", message, 48 + 8 * at)
        active = bool(message[self.active + at // 8] >> at % 8 & 1)
        nonzero = struct.unpack_from("<Q", message, self.second + 8 * at)[0] if self.nonzero else 0
        return Block(signs, active, nonzero)

    def write(self, buffer: np.ndarray, block: int, value: Block) -> None:
        shard, at = divmod(block, self.shard_blocks)
        message = buffer[shard * self.message :][: self.message]
        message[48 + 8 * at :][:8] = np.frombuffer(struct.pack("<Q", value.signs), np.uint8)
        bit = np.uint8(1 << at % 8)
        message[self.active + at // 8] &= ~bit
        message[self.active + at // 8] |= bit if value.active else np.uint8(0)
        if self.nonzero:
            plane = np.frombuffer(struct.pack("<Q", value.nonzero), np.uint8)
            message[self.second + 8 * at :][:8] = plane


def decide(votes: Sequence[Block], ties: int, coins: int, coordinates: int = 64) -> Block:
    """The verdict on one block, coordinate by coordinate."""
    voters = [vote for vote in votes if vote.active]
    if not voters:
        return NOTHING
    signs = nonzero = 0
    for i in range(coordinates):
        cast = [(v.signs >> i & 1, v.nonzero >> i & 1) for v in voters]
        if ties == ZERO:
            total = sum((-1 if sign else 1) for sign, there in cast if there)
        else:
            total = sum(-1 if sign else 1 for sign, _ in cast)
        negative = total < 0 or (total == 0 and ties == COIN and coins >> i & 1 == 1)
        signs |= int(negative) << i
        nonzero |= int(total != 0) << i
    return Block(signs, True, nonzero)


def balanced(votes: Sequence[Block], ties: int, coordinates: int = 64) -> int:
    """How many coordinates of the block are tied."""
    voters = [vote for vote in votes if vote.active]
    count = 0
    for i in range(coordinates):
        cast = [v.signs >> i & 1 for v in voters if ties != ZERO or v.nonzero >> i & 1]
        count += bool(cast) and 2 * sum(cast) == len(cast)
    return count


def patterns(dtype: str, count: int, rng: np.random.Generator, *, zeros: float = 0.1) -> np.ndarray:
    """Random finite bit patterns of a type, subnormals and zeros of either sign among them."""
    kind = KINDS[dtype]
    raw = rng.integers(1, kind.infinity, count, dtype=np.uint64)
    raw[rng.random(count) < 0.05] = 1  # the smallest subnormal
    raw[rng.random(count) < zeros] = 0
    raw |= np.where(rng.random(count) < 0.5, np.uint64(kind.sign), np.uint64(0))
    return raw.astype(kind.bits)


def as_signal(raw: np.ndarray, dtype: str) -> tuple[np.ndarray, dict[str, bool]]:
    """The array to pass for these patterns, and the keywords with it."""
    if dtype == "bfloat16":
        return raw, {"bfloat16": True}
    return raw.view(dtype), {}


def numbers(raw: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers of these patterns, in the type of their arithmetic."""
    if dtype == "bfloat16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a NaN that signals, made wider
        return raw.view(dtype).astype(np.float64 if dtype == "float64" else np.float32)


def canonical_sum(raw: np.ndarray, dtype: str) -> float:
    """The documented order of additions, in numpy."""
    values = numbers(raw, dtype)
    blocks = np.zeros((-(-raw.size // 64), 8, 8), values.dtype)
    blocks.reshape(-1)[: raw.size] = np.abs(values)
    total = 0.0
    for block in blocks:
        lanes = np.zeros(8, values.dtype)
        for row in block:
            lanes = lanes + row
        a, b, c, d = lanes[:4] + lanes[4:]
        total += float((a + c) + (b + d))
    return total


def random_ballots(
    voters: int, layout: Layout, rng: np.random.Generator, asleep: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ballots, and their votes as -1, 0, +1 and activity, [voter, block, coordinate]."""
    shape = (voters, layout.shard_blocks, 64)
    active = rng.random(shape[:2]) >= asleep
    negative = (rng.random(shape) < 0.5) & active[..., None]
    there = active[..., None] & (rng.random(shape) < (0.6 if layout.nonzero else 2.0))
    ballots = np.zeros((voters, layout.message), np.uint8)

    def plane(bits: np.ndarray) -> np.ndarray:
        return np.packbits(bits.reshape(voters, -1), axis=1, bitorder="little")

    size = 8 * layout.shard_blocks
    ballots[:, 48 : 48 + size] = plane(negative & there)
    bitmap = plane(active)
    ballots[:, layout.active :][:, : bitmap.shape[1]] = bitmap
    if layout.nonzero:
        ballots[:, layout.second : layout.second + size] = plane(there)
    return ballots, np.where(there, np.where(negative, -1, 1), 0), active
