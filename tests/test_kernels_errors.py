"""What the kernels refuse, and in which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_reference import COIN, ZERO, Layout

from hvd_sign.core import kernels

pytestmark = pytest.mark.quick

LAYOUT = Layout(4, 2)
GEOMETRY = LAYOUT.geometry()
FLOATS = "a contiguous float32, float64, float16 or bfloat16 array"
ONES = np.ones(256, np.float32)


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def words(count: int) -> np.ndarray:
    return np.zeros(count, np.uint64)


def pack(signal: Any = ONES, messages: Any = None, first: int = 0, **changes: Any) -> Any:
    messages = LAYOUT.buffer() if messages is None else messages
    options = {"ties": COIN, "key": 1, "parity": 0, "ordinal": 0, **changes}
    geometry = options.pop("geometry", GEOMETRY)
    return kernels.pack(signal, messages, geometry, first, **options)


def write(out: Any, messages: Any = None, first: int = 0, **changes: Any) -> None:
    messages = LAYOUT.buffer() if messages is None else messages
    kernels.write_verdict(out, messages, GEOMETRY, first, **changes)


def apply(p: Any, messages: Any = None, first: int = 0, **changes: Any) -> None:
    messages = LAYOUT.buffer() if messages is None else messages
    kernels.apply_verdict(p, messages, GEOMETRY, first, lr=0.1, **changes)


def tally(ballots: Any = None, verdict: Any = None, **changes: Any) -> Any:
    options = {
        "shard": 0,
        "ties": COIN,
        "key": 1,
        "first_blocks": np.zeros(1, np.int64),
        "ordinals": words(1),
        **changes,
    }
    geometry = options.pop("geometry", GEOMETRY)
    ballots = np.zeros(3 * LAYOUT.message, np.uint8) if ballots is None else ballots
    verdict = np.zeros(LAYOUT.message, np.uint8) if verdict is None else verdict
    return kernels.tally(ballots, geometry, verdict, **options)


def place(signs: Any, active: Any, nonzero: Any, geometry: Any = GEOMETRY, first: int = 0) -> None:
    buffer = np.zeros(geometry.total_bytes, np.uint8)
    kernels.place(signs, active, nonzero, buffer, geometry, first)


BOTH = np.zeros(LAYOUT.message * 2 + 64, np.uint8)
BIG = np.zeros(LAYOUT.message * 4, np.uint8)
WITH_ZEROS = kernels.Geometry(4, 2, True)

TYPE_ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: pack(ONES.astype(np.int32)), f"pack: signal: expected {FLOATS}, got int32"),
    (lambda: pack(ONES.astype(np.uint16)), f"pack: signal: expected {FLOATS}, got uint16"),
    (lambda: pack(ONES > 0), f"pack: signal: expected {FLOATS}, got bool"),
    (lambda: pack(ONES.astype(np.complex64)), f"pack: signal: expected {FLOATS}, got complex64"),
    (lambda: pack([1.0]), f"pack: signal: expected {FLOATS}, got list"),
    (lambda: pack(None), f"pack: signal: expected {FLOATS}, got NoneType"),
    (lambda: pack(1.0), f"pack: signal: expected {FLOATS}, got float"),
    (lambda: pack(ONES.astype(">f4")), f"pack: signal: expected {FLOATS}, got ndarray"),
    (
        lambda: pack(ONES, bfloat16=True),
        "pack: signal: expected a bfloat16 array, or its bits as uint16, got float32",
    ),
    (
        lambda: pack(messages=LAYOUT.buffer().view(np.int8)),
        "pack: messages: expected a contiguous uint8 array, got int8",
    ),
    (
        lambda: pack(messages="x"),
        "pack: messages: expected a contiguous uint8 array, got str",
    ),
    (lambda: write(ONES.astype(int)), f"write_verdict: out: expected {FLOATS}, got int64"),
    (lambda: apply([1.0]), f"apply_verdict: p: expected {FLOATS}, got list"),
    (
        lambda: tally(first_blocks=np.zeros(1)),
        "tally: first_blocks: expected a contiguous int64 array, got float64",
    ),
    (
        lambda: tally(ordinals=np.zeros(1, np.int64)),
        "tally: ordinals: expected a contiguous uint64 array, got int64",
    ),
    (
        lambda: place(words(4).view(np.int64), words(1), None),
        "place: signs: expected a contiguous uint64 array, got int64",
    ),
    (
        lambda: place(words(4), words(1), words(4)),
        "place: nonzero: expected None, as the geometry has no such plane, got an array",
    ),
    (
        lambda: place(words(4), words(1), None, WITH_ZEROS),
        "place: nonzero: expected a contiguous uint64 array, got None",
    ),
    (
        lambda: kernels.coin_words(1, 1, 0, np.zeros(3)),
        "coin_words: out: expected a contiguous uint64 array, got float64",
    ),
]

VALUE_ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: pack(ONES[::2]),
        f"pack: signal: expected {FLOATS}, got one with gaps or another order",
    ),
    (
        lambda: pack(ONES.reshape(16, 16).T),
        f"pack: signal: expected {FLOATS}, got one with gaps or another order",
    ),
    (
        lambda: pack(ONES[::-1]),
        f"pack: signal: expected {FLOATS}, got one with gaps or another order",
    ),
    (lambda: pack(messages=BOTH), "pack: messages: expected 144 bytes, the geometry's, got 208"),
    (
        lambda: pack(messages=read_only(LAYOUT.buffer())),
        "pack: messages: expected a writable array, got a read-only one",
    ),
    (
        lambda: pack(messages=b"\0" * 144),
        "pack: messages: expected a writable array, got a read-only one",
    ),
    (
        lambda: pack(BOTH[128:192].view(np.float32), BOTH[:144]),
        "pack: messages: expected memory apart from signal, got an overlap with it",
    ),
    (
        lambda: pack(first=1),
        "pack: first_block: expected 4 blocks inside the bucket's 4, got blocks from 1 on",
    ),
    (
        lambda: pack(ONES[:1], first=-1),
        "pack: first_block: expected 1 blocks inside the bucket's 4, got blocks from -1 on",
    ),
    (
        lambda: pack(ties=7),
        "pack: ties: expected 0 (coin), 1 (zero) or 2 (positive), got 7",
    ),
    (
        lambda: pack(ties=ZERO),
        "pack: geometry: expected one with a non-zero plane, as ties 'zero' needs it, "
        "got one without",
    ),
    (
        lambda: pack(messages=np.zeros(WITH_ZEROS.total_bytes, np.uint8), geometry=WITH_ZEROS),
        "pack: geometry: expected one without a non-zero plane, as only ties 'zero' has it, "
        "got one with it",
    ),
    (
        lambda: write(read_only(ONES.copy())),
        "write_verdict: out: expected a writable array, got a read-only one",
    ),
    (
        lambda: write(ONES.copy(), BOTH),
        "write_verdict: messages: expected 144 bytes, the geometry's, got 208",
    ),
    (
        lambda: write(BOTH[:64].view(np.float32), BOTH[40:184]),
        "write_verdict: out: expected memory apart from messages, got an overlap with it",
    ),
    (
        lambda: write(np.ones(257, np.float32)),
        "write_verdict: first_block: expected 5 blocks inside the bucket's 4, got blocks from 0 on",
    ),
    (
        lambda: apply(read_only(ONES.copy())),
        "apply_verdict: p: expected a writable array, got a read-only one",
    ),
    (
        lambda: apply(BOTH[:64].view(np.float32), BOTH[40:184]),
        "apply_verdict: p: expected memory apart from messages, got an overlap with it",
    ),
    (
        lambda: tally(ballots=np.zeros(100, np.uint8)),
        "tally: ballots: expected a whole number of messages of 72 bytes, got 100 bytes",
    ),
    (
        lambda: tally(ballots=np.zeros(0, np.uint8)),
        "tally: ballots: expected a whole number of messages of 72 bytes, got 0 bytes",
    ),
    (
        lambda: tally(verdict=np.zeros(71, np.uint8)),
        "tally: verdict: expected 72 items, got 71",
    ),
    (
        lambda: tally(verdict=read_only(np.zeros(72, np.uint8))),
        "tally: verdict: expected a writable array, got a read-only one",
    ),
    (
        lambda: tally(BIG[: 3 * 72], BIG[2 * 72 : 3 * 72]),
        "tally: verdict: expected memory apart from ballots, got an overlap with it",
    ),
    (
        lambda: place(np.frombuffer(bytes(33), np.uint64, offset=1), words(1), None),
        "place: signs: expected an aligned array, got one that begins between two words",
    ),
    (lambda: tally(shard=2), "tally: shard: expected 0 to 1, got 2"),
    (lambda: tally(shard=-1), "tally: shard: expected 0 to 1, got -1"),
    (
        lambda: tally(ordinals=words(2)),
        "tally: ordinals: expected 1 items, got 2",
    ),
    (
        lambda: tally(first_blocks=np.array([1])),
        "tally: first_blocks: expected ascending blocks, the first at or before the shard's "
        "first block 0, got others",
    ),
    (
        lambda: tally(first_blocks=np.array([0, 2, 1]), ordinals=words(3)),
        "tally: first_blocks: expected ascending blocks, the first at or before the shard's "
        "first block 0, got others",
    ),
    (
        lambda: tally(first_blocks=np.zeros(0, np.int64), ordinals=words(0)),
        "tally: first_blocks: expected ascending blocks, the first at or before the shard's "
        "first block 0, got none",
    ),
    (
        lambda: tally(first_blocks=np.array([-(2**63)])),
        "tally: first_blocks: expected blocks from -281474976710656 on, got -9223372036854775808",
    ),
    (
        lambda: tally(first_blocks=np.array([-(2**48) - 1, 0]), ordinals=words(2)),
        "tally: first_blocks: expected blocks from -281474976710656 on, got -281474976710657",
    ),
    (
        lambda: tally(ties=ZERO),
        "tally: geometry: expected one with a non-zero plane, as ties 'zero' needs it, "
        "got one without",
    ),
    (
        lambda: place(words(5), words(1), None),
        "place: first_block: expected 5 blocks inside the bucket's 4, got blocks from 0 on",
    ),
    (lambda: place(words(4), words(2), None), "place: active: expected 1 items, got 2"),
    (
        lambda: place(words(4), words(1), words(3), WITH_ZEROS),
        "place: nonzero: expected 4 items, got 3",
    ),
    (
        lambda: kernels.fetch(LAYOUT.buffer(), GEOMETRY, 0, read_only(words(4)), words(1), None),
        "fetch: signs: expected a writable array, got a read-only one",
    ),
    (
        lambda: kernels.abstain(LAYOUT.buffer(), GEOMETRY, 0, -1),
        "abstain: blocks: expected 0 or more, got -1",
    ),
    (
        lambda: kernels.abstain(LAYOUT.buffer(), GEOMETRY, 3, 2),
        "abstain: first_block: expected 2 blocks inside the bucket's 4, got blocks from 3 on",
    ),
    (
        lambda: kernels.coin_key(1, "heads", 1),
        "coin_key: stream: expected 'zero', 'tie' or 'node', got 'heads'",
    ),
    (lambda: kernels.Geometry(-1, 1), "Geometry: blocks: expected 0 to 281474976710656, got -1"),
    (lambda: kernels.Geometry(1, 0), "Geometry: shards: expected 1 to 2147483648, got 0"),
    (
        lambda: kernels.Geometry(1, 1, False, -1),
        "Geometry: trailer_floats: expected 0 to 2147483648, got -1",
    ),
    (  # 2^64 bytes, which are 0 in 64 bits
        lambda: kernels.Geometry(1, 2**31, False, 2**31 - 16),
        "Geometry: blocks, shards, trailer_floats: expected at most 9223372036854775807 bytes in "
        "all messages, got 2147483648 messages of 8589934592",
    ),
    (  # 2^63 bytes
        lambda: kernels.Geometry(1, 2**30, False, 2**31 - 16),
        "Geometry: blocks, shards, trailer_floats: expected at most 9223372036854775807 bytes in "
        "all messages, got 1073741824 messages of 8589934592",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), TYPE_ERRORS, ids=[s for _, s in TYPE_ERRORS])
def test_type_errors(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        call()


@pytest.mark.parametrize(("call", "sentence"), VALUE_ERRORS, ids=[s for _, s in VALUE_ERRORS])
def test_value_errors(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        call()


def test_the_largest_sizes_are_exact() -> None:
    one = 48 + 2**48 * 8 + 2**45 + 2**48 * 8 + 2**33
    assert kernels.Geometry(2**48, 1, True, 2**31).total_bytes == one
    many = kernels.Geometry(2**48, 2**31, False, 2**29)
    assert many.total_bytes == 2**31 * (48 + 2**17 * 8 + 2**14 + 2**31)
    assert tally(first_blocks=np.array([-(2**48)])) == (0, 2)


def test_adjacent_memory_is_no_overlap() -> None:
    memory = np.zeros(256 + 144, np.uint8)
    pack(memory[:256].view(np.float32), memory[256:])
    memory = np.zeros(144 + 256, np.uint8)
    write(memory[144:].view(np.float32), memory[:144])


def test_read_only_inputs_are_fine() -> None:
    assert pack(read_only(ONES.copy()))[1] == 256
    write(ONES.copy(), read_only(LAYOUT.buffer()))
    kernels.fetch(read_only(LAYOUT.buffer()), GEOMETRY, 0, words(4), words(1), None)


def test_floats_at_any_byte() -> None:
    for start in range(1, 4):
        memory = np.zeros(1024 + 4, np.uint8)
        x = np.frombuffer(memory.data, np.float32, 256, start)
        x[:] = -1
        buffer = LAYOUT.buffer()
        assert pack(x, buffer, parity=True)[1] == 256
        assert (buffer[48:64] == 255).all()
        apply(x, buffer)
        assert (x == np.float32(-1) + np.float32(0.1)).all()


def test_any_shape() -> None:
    assert pack(ONES.reshape(4, 8, 8))[1] == 256
    assert pack(np.float32(-1).reshape(()))[1] == 1
    assert pack(np.zeros((0, 3), np.float32)) == (0, 0, 0.0)
    assert pack(memoryview(ONES))[1] == 256
    odd = ONES[:14].reshape(7, 2)[:, :1][:1]  # one element, whatever its strides
    assert pack(odd)[1] == 1
