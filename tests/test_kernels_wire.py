"""The wire convention as literals: bits, bytes, headers."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from kernel_reference import (
    COIN,
    DTYPES,
    GOLDEN,
    KINDS,
    MASK,
    POSITIVE,
    ZERO,
    Layout,
    as_signal,
    coin_word,
    implementation,  # noqa: F401
    mix,
)

from hvd_sign.core import kernels

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("implementation")]

F32 = np.float32


def packed(
    x: np.ndarray, ties: int = POSITIVE, *, nonzero: bool = False, parity: int = 0, **more: Any
) -> tuple[np.ndarray, tuple[int, int, float]]:
    """One message with the array's blocks, without the header, and what pack() returned."""
    geometry = kernels.Geometry(-(-x.size // 64), 1, nonzero)
    message = np.full(geometry.total_bytes, 0xAB, np.uint8)
    bitmap_words = -(-geometry.shard_blocks // 64)  # the bits of blocks that do not exist are kept
    message[geometry.active_offset :][: bitmap_words * 8] = 0
    seen = kernels.pack(
        x, message, geometry, 0, ties=ties, key=77, parity=parity, ordinal=3, **more
    )
    assert (message[:48] == 0xAB).all(), "pack() must leave the header alone"
    return message[48:], seen


def test_bit_order() -> None:
    x = np.ones(70, F32)
    x[[0, 1, 9, 63, 64, 69]] = -1
    body, seen = packed(x)
    words = [0b11, 0b10, 0, 0, 0, 0, 0, 0x80, 0b100001, 0, 0, 0, 0, 0, 0, 0]
    activity = [0b11, 0, 0, 0, 0, 0, 0, 0]
    assert body.tobytes() == bytes(words + activity)
    assert seen == (0, 70, 0.0)


def test_alternating_signs() -> None:
    body, _ = packed(np.array([1, -1] * 32, F32))
    assert body.tobytes() == b"\xaa" * 8 + b"\x01" + b"\0" * 7


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_subnormals(dtype: str) -> None:
    kind = KINDS[dtype]
    one, minus_subnormal = kind.infinity >> 1, kind.sign | 1
    raw = np.array([one, 0, kind.sign, minus_subnormal, 1, kind.sign | one], kind.bits)
    signal, keywords = as_signal(raw, dtype)
    body, _ = packed(signal, **keywords)
    assert body[:8].tobytes() == bytes([0b101000]) + b"\0" * 7
    assert body[8] == 1
    body, _ = packed(signal, ZERO, nonzero=True, **keywords)
    assert body.tobytes() == (
        bytes([0b101000]) + b"\0" * 7 + b"\x01" + b"\0" * 7 + bytes([0b111001]) + b"\0" * 7
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_of_zeros_is_inactive(dtype: str) -> None:
    kind = KINDS[dtype]
    raw = np.zeros(192, kind.bits)
    raw[64:128] = kind.sign  # -0.0
    raw[190] = 1
    signal, keywords = as_signal(raw, dtype)
    for ties in (COIN, POSITIVE):
        body, seen = packed(signal, ties, **keywords)
        assert body[:16].tobytes() == b"\0" * 16
        assert body[24] == 0b100
        assert seen[:2] == (0, 192)
    body, _ = packed(signal, ZERO, nonzero=True, **keywords)
    assert body[32:].tobytes() == b"\0" * 16 + struct.pack("<Q", 1 << 62)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 63, 64, 4095])
@pytest.mark.parametrize("bad", ["inf", "-inf", "nan", "-nan", "signalling nan"])
def test_nonfinite_chunk_abstains(dtype: str, place: int, bad: str) -> None:
    kind = KINDS[dtype]
    raw = np.full(4096 + 4096 + 10, kind.sign | 1, kind.bits)
    raw[4096 + place] = {
        "inf": kind.infinity,
        "-inf": kind.sign | kind.infinity,
        "nan": kind.infinity | kind.infinity >> 1,
        "-nan": kind.sign | kind.infinity | kind.infinity >> 1,
        "signalling nan": kind.infinity | 1,
    }[bad]
    signal, keywords = as_signal(raw, dtype)
    body, seen = packed(signal, want_abs=True, **keywords)
    assert seen[:2] == (1, 4096 + 10)
    assert np.isfinite(seen[2])
    assert body[:512].tobytes() == b"\xff" * 512
    assert body[512:1024].tobytes() == b"\0" * 512
    assert body[1024:1032].tobytes() == struct.pack("<Q", 1023)
    assert body[1032:1056].tobytes() == b"\xff" * 8 + b"\0" * 8 + b"\x01" + b"\0" * 7


def test_nonfinite_in_a_short_tail() -> None:
    x = np.full(4096 + 3, -1, F32)
    x[-1] = np.nan
    body, seen = packed(x)
    assert seen == (1, 4096, 0.0)
    assert body[512:520].tobytes() == b"\0" * 8
    assert body[520:536].tobytes() == b"\xff" * 8 + b"\0" * 8


def test_the_largest_finite_numbers_are_finite() -> None:
    for dtype in DTYPES:
        kind = KINDS[dtype]
        signal, keywords = as_signal(np.full(3, kind.sign | kind.infinity - 1, kind.bits), dtype)
        body, seen = packed(signal, **keywords)
        assert seen[:2] == (0, 3), dtype
        assert body[0] == 0b111


# Frozen: a change of these numbers is a change of the wire convention.
COINS_AT_77_3 = [0xEF0148988F3492BC, 0x73EEB407E77D1577]


def test_coins_cast_for_zeros() -> None:
    x = np.zeros(128, F32)
    x[[0, 127]] = -1
    body, _ = packed(x, COIN)
    expected = [COINS_AT_77_3[0] | 1, COINS_AT_77_3[1] | 1 << 63]
    assert struct.unpack("<2Q", body[:16].tobytes()) == tuple(expected)
    body, _ = packed(x, COIN, parity=1)
    expected = [COINS_AT_77_3[0] ^ MASK | 1, COINS_AT_77_3[1] ^ MASK | 1 << 63]
    assert struct.unpack("<2Q", body[:16].tobytes()) == tuple(expected)
    assert packed(x, COIN, parity=7)[0].tobytes() == body.tobytes()


def test_coins_frozen() -> None:
    # SplitMix64 with seed 1234567 begins so in its authors' and others' tests.
    states = [1234567 + GOLDEN * i & MASK for i in (1, 2)]
    assert [mix(x) for x in states] == [6457827717110365317, 3203168211198807973]
    assert [coin_word(77, 3, block) for block in (0, 1)] == COINS_AT_77_3
    out = np.empty(2, np.uint64)
    kernels.coin_words(77, 3, 0, out)
    assert out.tolist() == COINS_AT_77_3
    assert kernels.coin_key(0, "zero", 0) == 0x871B275E2C983E04
    assert kernels.coin_key(0, "tie", 0) == 0x3AF8798E18F8977E
    assert kernels.coin_key(0, "node", 0) == 0x643BFD7F4C328A47
    assert kernels.coin_key(-1, "tie", 5) == kernels.coin_key(MASK, "tie", 5) == 0x1E3C7DE5AFBBBEC7


def test_abs_sum() -> None:
    x = np.array([1.5, -2.0, 0.0, -0.25] * 100, F32)
    assert packed(x, want_abs=True)[1] == (0, 400, 375.0)
    assert packed(x)[1] == (0, 400, 0.0)
    assert packed(x.astype(np.float16), want_abs=True)[1][2] == 375.0
    assert packed(x.astype(np.float64) * 2.0**700, want_abs=True)[1][2] == 375.0 * 2.0**700


def test_abs_sum_has_one_order() -> None:
    # In float32, 2^24 + 1 is 2^24: what is lost shows which numbers met first.
    x = np.zeros(64, F32)
    x[0], x[4], x[2], x[8] = 2.0**24, 1, 3, 1
    # lane 0: 2^24 + 1 -> 2^24; with lane 4 again 2^24; with lane 2: 2^24 + 3 -> 2^24 + 4 (to even)
    assert packed(x, want_abs=True)[1][2] == 2.0**24 + 4
    x = np.zeros(65, F32)
    x[0], x[64] = 2.0**24, 1
    assert packed(x, want_abs=True)[1][2] == 2.0**24 + 1  # blocks meet in float64


def test_geometry() -> None:
    g = kernels.Geometry(130, 4)
    assert (g.blocks, g.shards, g.nonzero, g.trailer_floats) == (130, 4, False, 0)
    assert g.shard_blocks == 33
    assert (g.signs_offset, g.active_offset, g.nonzero_offset) == (48, 48 + 264, 0)
    assert g.trailer_offset == g.message_bytes == 48 + 264 + 8
    assert g.total_bytes == 4 * g.message_bytes
    g = kernels.Geometry(65, 1, True, 3)
    assert (g.active_offset, g.nonzero_offset, g.trailer_offset) == (568, 584, 1104)
    assert g.message_bytes == 1120
    assert kernels.Geometry(0, 3).shard_blocks == 1
    assert kernels.Geometry(64, 1).message_bytes == 48 + 512 + 8
    text = "Geometry(blocks=65, shards=1, nonzero=True, trailer_floats=3, chunk_scales=False)"
    assert repr(g) == text
    g = kernels.Geometry(192, 2, True, 1, True)  # shards are cut between chunks
    assert (g.shard_blocks, g.chunk_scales) == (128, True)
    assert (g.active_offset, g.nonzero_offset) == (48 + 1024, 48 + 1024 + 16)
    assert (g.scales_offset, g.trailer_offset) == (48 + 1024 + 16 + 1024, 48 + 1024 + 16 + 1024 + 8)
    assert g.message_bytes == g.trailer_offset + 8


def test_blocks_lie_across_messages() -> None:
    layout = Layout(10, 4)  # 3 blocks a message
    geometry, buffer = layout.geometry(), layout.buffer()
    x = -np.arange(1, 5 * 64 + 1, dtype=F32)
    x[2 * 64 : 3 * 64] = 0
    kernels.pack(x, buffer, geometry, 2, ties=POSITIVE, key=0, parity=0, ordinal=0)
    blocks = [layout.read(buffer, g) for g in range(12)]
    assert [b.signs for b in blocks] == [0, 0, MASK, MASK, 0, MASK, MASK, 0, 0, 0, 0, 0]
    assert [b.active for b in blocks] == [b.signs != 0 for b in blocks]


def test_abstain_clears_just_its_blocks() -> None:
    for nonzero, ties in ((False, COIN), (True, ZERO)):
        layout = Layout(200, 2, nonzero)
        geometry, buffer = layout.geometry(), layout.buffer()
        x = -np.ones(200 * 64, F32)
        kernels.pack(x, buffer, geometry, 0, ties=ties, key=0, parity=0, ordinal=0)
        kernels.abstain(buffer, geometry, 90, 75)
        for g in range(200):
            block = layout.read(buffer, g)
            there = not 90 <= g < 165
            assert block == (MASK * there, there, MASK * there * nonzero), g


def test_place_and_fetch() -> None:
    rng = np.random.default_rng(1)
    for nonzero in (False, True):
        layout = Layout(300, 3, nonzero)
        for first, count in ((0, 300), (37, 200), (99, 1), (100, 0), (5, 64), (299, 1)):
            words = [rng.integers(0, MASK, n, np.uint64, True) for n in (count, count)]
            active = rng.integers(0, MASK, -(-count // 64), np.uint64, True)
            buffer = layout.buffer()
            second = words[1] if nonzero else None
            kernels.place(words[0], active, second, buffer, layout.geometry(), first)
            for g in range(300):
                at = g - first
                expected = (0, False, 0)
                if 0 <= at < count:
                    bit = bool(int(active[at // 64]) >> at % 64 & 1)
                    expected = (int(words[0][at]), bit, int(words[1][at]) * nonzero)
                assert layout.read(buffer, g) == expected
            back = [np.full_like(a, 7) for a in (words[0], active, words[1])]
            kernels.fetch(
                buffer, layout.geometry(), first, back[0], back[1], back[2] if nonzero else None
            )
            if count % 64:  # bits past the last block are 0
                active[-1] &= np.uint64((1 << count % 64) - 1)
            assert back[0].tolist() == words[0].tolist()
            assert back[1].tolist() == active.tolist()
            assert not nonzero or back[2].tolist() == words[1].tolist()


def test_xor_words() -> None:
    rng = np.random.default_rng(2)
    for count in (0, 1, 7, 8, 9, 100):
        words = rng.integers(0, MASK, count, np.uint64, True)
        assert kernels.xor_words(words) == np.bitwise_xor.reduce(words)
