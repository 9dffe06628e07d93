"""Headers and checksums: the bytes, and what check() says about each field."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from kernel_reference import COIN, MASK, ZERO, Layout, mix

from hvd_sign.core import kernels

pytestmark = pytest.mark.quick

LABELS: dict[str, Any] = {
    "kind": 1,
    "ties": 2,
    "stream": 7,
    "bucket": 8,
    "segment": 9,
    "step": 1 << 40,
}


def reference_checksum(message: bytes) -> int:
    """Eight lanes of xor, multiply, rotate, written once more."""
    lanes = [mix(lane) for lane in range(8)]

    def absorb(lane: int, word: int) -> None:
        product = (lanes[lane] ^ word) * 0x9FB21C651E98DF25 & MASK
        lanes[lane] = (product << 29 | product >> 35) & MASK

    header = message[:8] + b"\0" * 4 + message[12:48]
    for place, (word,) in enumerate(struct.iter_unpack("<Q", header)):
        absorb(place, word)
    for place, (word,) in enumerate(struct.iter_unpack("<Q", message[48:])):
        absorb(place % 8, word)
    total = len(message)
    for lane in lanes:
        total = mix(total ^ lane)
    return (total >> 32 ^ total) & 0xFFFF_FFFF


def sealed(layout: Layout, shard: int = -1, **changes: Any) -> np.ndarray:
    """Messages with random bodies, message i sent by rank i."""
    rows = np.random.default_rng(5).integers(0, 256, (layout.shards, layout.message), np.uint8)
    for rank, row in enumerate(rows):
        labels = {**LABELS, "flags": 3, "counter": rank + 10, "sender": rank, **changes}
        place = rank if shard < 0 else shard
        kernels.seal(row, layout.geometry(), shard=place, **labels)
    return rows.reshape(-1)


def test_header_bytes() -> None:
    layout = Layout(3, 1, floats=1)
    buffer = layout.buffer()
    kernels.seal(
        buffer,
        layout.geometry(),
        kind=kernels.VERDICT,
        flags=kernels.ABSTAINED | kernels.JOINED,
        ties=ZERO,
        stream=0x11223344,
        bucket=0x55667788,
        segment=3,
        counter=4,
        step=0x0102030405060708,
        sender=6,
        shard=0,
    )
    message = buffer.tobytes()
    assert message[:8] == b"HVSG" + b"\x01\x00" + b"\x05\x00"
    assert message[12:48] == bytes.fromhex(
        "0200 0100 44332211 88776655 03000000 04000000 0807060504030201 06000000 00000000"
    )
    assert message[8:12] == struct.pack("<I", reference_checksum(message))
    assert message[8:12] == bytes.fromhex("fe358c3e"), "the checksum is frozen"


def test_constants() -> None:
    assert kernels.MESSAGE_VERSION == 1
    assert kernels.HEADER_BYTES == 48
    assert (kernels.ABSTAINED, kernels.NONFINITE, kernels.JOINED) == (1, 2, 4)
    assert (kernels.BALLOT, kernels.VERDICT) == (1, 2)
    assert (kernels.BLOCK, kernels.CHUNK_BLOCKS) == (64, 64)


@pytest.mark.parametrize("blocks", [0, 1, 2, 7, 8, 9, 63, 64, 65, 200])
def test_checksum_of_any_length(blocks: int) -> None:
    for floats in (0, 1, 2):
        layout = Layout(blocks, 1, floats=floats)
        message = sealed(layout).tobytes()
        assert message[8:12] == struct.pack("<I", reference_checksum(message))


def test_seal_clears_what_no_block_uses() -> None:
    layout = Layout(70, 3, nonzero=True, floats=1)  # 24 blocks a message, 22 in the last
    buffer = np.full(layout.message * 3, 0xFF, np.uint8)
    kernels.seal(buffer, layout.geometry(), flags=0, counter=0, sender=0, **{**LABELS, "ties": 1})
    for g in range(72):
        assert layout.read(buffer, g) == ((MASK, True, MASK) if g < 70 else (0, False, 0)), g
    for message in buffer.reshape(3, -1):
        assert message[layout.active + 3 : layout.second].tolist() == [0] * 5
        assert message[layout.trailer :].tolist() == [255] * 4 + [0] * 4


def test_seal_numbers_shards() -> None:
    layout = Layout(70, 3)
    rows = sealed(layout).reshape(3, -1)
    assert [struct.unpack("<I", row[44:48])[0] for row in rows] == [0, 1, 2]
    rows = sealed(layout, shard=1).reshape(3, -1)
    assert [struct.unpack("<I", row[44:48])[0] for row in rows] == [1, 1, 1]


def test_check_reads_flags_and_counters() -> None:
    layout = Layout(70, 3)
    assert kernels.check(sealed(layout), layout.geometry(), **LABELS) == ([3, 3, 3], [10, 11, 12])
    named = {"ranks": [7, 2, 9], **LABELS}
    assert kernels.check(sealed(layout), layout.geometry(), **named) == ([3, 3, 3], [10, 11, 12])
    damaged = sealed(layout)
    damaged[2 * layout.message - 9] ^= 1
    with pytest.raises(ValueError, match="checksum of the message from rank 2: expected"):
        kernels.check(damaged, layout.geometry(), **named)
    with pytest.raises(ValueError, match="check: ranks: expected 3 items, one a message, got 2"):
        kernels.check(sealed(layout), layout.geometry(), ranks=[7, 2], **LABELS)
    received = sealed(layout, shard=2)
    seen = kernels.check(received, layout.geometry(), shard=2, **LABELS)
    assert seen == ([3, 3, 3], [10, 11, 12])


@pytest.mark.parametrize(
    ("field", "sent", "sentence"),
    [
        ("kind", 2, "kind of the message from rank 0: expected ballot, got verdict"),
        ("ties", 0, "ties of the message from rank 0: expected positive, got coin"),
        ("stream", 70, "stream of the message from rank 0: expected 7, got 70"),
        ("bucket", 80, "bucket of the message from rank 0: expected 8, got 80"),
        ("segment", 90, "segment of the message from rank 0: expected 9, got 90"),
        ("step", 1, "step of the message from rank 0: expected 1099511627776, got 1"),
        ("sender", 2, "sender of the message from rank 0: expected 0, got 2"),
    ],
)
def test_check_names_the_field(field: str, sent: int, sentence: str) -> None:
    layout = Layout(70, 3)
    messages = sealed(layout, **{field: sent})
    with pytest.raises(ValueError, match=f"^check: {sentence}$"):
        kernels.check(messages, layout.geometry(), **LABELS)


def test_check_names_shard_magic_and_version() -> None:
    layout = Layout(70, 3)
    with pytest.raises(ValueError, match="shard of the message from rank 0: expected 0, got 2"):
        kernels.check(sealed(layout, shard=2), layout.geometry(), **LABELS)
    with pytest.raises(ValueError, match="shard of the message from rank 1: expected 0, got 1"):
        kernels.check(sealed(layout), layout.geometry(), shard=0, **LABELS)
    messages = sealed(layout)
    messages[layout.message] = 0
    with pytest.raises(
        ValueError, match="magic of the message from rank 1: expected 0x47535648, got 0x47535600"
    ):
        kernels.check(messages, layout.geometry(), **LABELS)
    messages = sealed(layout)
    messages[2 * layout.message + 4] = 9
    with pytest.raises(ValueError, match="version of the message from rank 2: expected 1, got 9"):
        kernels.check(messages, layout.geometry(), **LABELS)


def test_every_flipped_bit_is_noticed() -> None:
    layout = Layout(3, 1, floats=1)
    geometry = layout.geometry()
    messages = sealed(layout)
    for bit in range(layout.message * 8):
        messages[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="of the message from rank 0"):
            kernels.check(messages, geometry, **LABELS)
        messages[bit // 8] ^= 1 << bit % 8
    kernels.check(messages, geometry, **LABELS)


def test_two_flips_in_one_lane_are_noticed() -> None:
    layout = Layout(200, 1)
    messages = sealed(layout)
    body = messages[48:].view(np.uint64)
    for bit in range(64):
        for distance in (8, 16, 64):
            body[[3, 3 + distance]] ^= np.uint64(1 << bit)
            with pytest.raises(ValueError, match="checksum"):
                kernels.check(messages, layout.geometry(), **LABELS)
            body[[3, 3 + distance]] ^= np.uint64(1 << bit)


def test_labels_are_limited() -> None:
    layout = Layout(3, 2)
    buffer = layout.buffer()
    base: dict[str, Any] = {**LABELS, "flags": 0, "counter": 0, "sender": 0}
    for changes, sentence in [
        ({"kind": 3}, r"seal: kind: expected BALLOT \(1\) or VERDICT \(2\), got 3"),
        ({"ties": 3}, r"seal: ties: expected 0 \(coin\), 1 \(zero\) or 2 \(positive\), got 3"),
        ({"shard": 2}, "seal: shard: expected -1 to 1, got 2"),
        ({"shard": -2}, "seal: shard: expected -1 to 1, got -2"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            kernels.seal(buffer, layout.geometry(), **{**base, **changes})
    with pytest.raises(ValueError, match="seal: messages: expected no more messages than the "):
        kernels.seal(np.tile(buffer, 2), layout.geometry(), **base)
    with pytest.raises(ValueError, match="seal: messages: expected a whole number of messages"):
        kernels.seal(buffer[:-1].copy(), layout.geometry(), **base)
    with pytest.raises(ValueError, match="check: messages: expected a whole number of messages"):
        kernels.check(buffer[:0], layout.geometry(), **LABELS)
    with pytest.raises(ValueError, match=r"check: kind: expected BALLOT"):
        kernels.check(buffer, layout.geometry(), **{**LABELS, "kind": 0})
    assert COIN == 0
