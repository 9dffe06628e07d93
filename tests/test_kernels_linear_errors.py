"""What pack_linear refuses, and in which words."""

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
MEMORY = np.zeros(64, np.float32)


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def pack_linear(
    gradient: Any = ONES, state: Any = None, next_state: Any = None, **changes: Any
) -> Any:
    options = {"linear": (0.9, 0.1, 0.9, 0.1), "ties": COIN, "key": 1, "parity": 0, "ordinal": 0}
    options |= changes
    messages = options.pop("messages", None)
    messages = LAYOUT.buffer() if messages is None else messages
    first = options.pop("first", 0)
    return kernels.pack_linear(gradient, state, next_state, messages, GEOMETRY, first, **options)


TYPE_ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: pack_linear(ONES.astype(int)),
        f"pack_linear: gradient: expected {FLOATS}, got int64",
    ),
    (
        lambda: pack_linear(None),
        "pack_linear: gradient: expected an array, as there is no state, got NoneType",
    ),
    (
        lambda: pack_linear(ONES, ONES),
        "pack_linear: next_state: expected an array, as there is a state, got NoneType",
    ),
    (
        lambda: pack_linear(ONES, None, ONES.copy()),
        "pack_linear: next_state: expected None, as there is no state, got ndarray",
    ),
    (
        lambda: pack_linear(ONES, ONES.astype(np.float64), ONES.astype(np.float64)),
        "pack_linear: state: expected a contiguous float32 array, got float64",
    ),
    (
        lambda: pack_linear(ONES.astype(np.float16), ONES.astype(np.float16), ONES.copy()),
        "pack_linear: state: expected a contiguous float32 array, got float16",
    ),
    (
        lambda: pack_linear(ONES.astype(np.float64), ONES.astype(np.float64), ONES.copy()),
        "pack_linear: next_state: expected a contiguous float64 array, got float32",
    ),
    (
        lambda: pack_linear(None, ONES.astype(np.float16), ONES.astype(np.float16)),
        "pack_linear: state: expected a contiguous float32 array, got float16",
    ),
    (
        lambda: pack_linear(ONES, [1.0], ONES.copy()),
        f"pack_linear: state: expected {FLOATS}, got list",
    ),
]

VALUE_ERRORS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: pack_linear(ONES, ONES[:255], ONES[:255].copy()),
        "pack_linear: state: expected 256 items, got 255",
    ),
    (
        lambda: pack_linear(ONES, ONES, np.ones(257, np.float32)),
        "pack_linear: next_state: expected 256 items, got 257",
    ),
    (
        lambda: pack_linear(None, np.ones(257, np.float32), np.ones(257, np.float32)),
        "pack_linear: first_block: expected 5 blocks inside the bucket's 4, got blocks from 0 on",
    ),
    (
        lambda: pack_linear(ONES, ONES, read_only(ONES.copy())),
        "pack_linear: next_state: expected a writable array, got a read-only one",
    ),
    (
        lambda: pack_linear(ONES[:9], MEMORY[:9], MEMORY[8:17]),
        "pack_linear: next_state: expected memory apart from state, got an overlap with it",
    ),
    (
        lambda: pack_linear(MEMORY[8:17], MEMORY[:9], MEMORY[:9]),
        "pack_linear: next_state: expected memory apart from gradient, got an overlap with it",
    ),
    (
        lambda: pack_linear(MEMORY[:9], messages=MEMORY[:36].view(np.uint8)),
        "pack_linear: messages: expected memory apart from gradient, got an overlap with it",
    ),
    (
        lambda: pack_linear(
            ONES[:9], MEMORY[:9], ONES[:9].copy(), messages=MEMORY[:36].view(np.uint8)
        ),
        "pack_linear: messages: expected memory apart from state, got an overlap with it",
    ),
    (
        lambda: pack_linear(None, ONES[:9], MEMORY[:9], messages=MEMORY[8:44].view(np.uint8)),
        "pack_linear: messages: expected memory apart from next_state, got an overlap with it",
    ),
    (
        lambda: pack_linear(ONES, linear=(0.9, 0.1, float("nan"), 0.1)),
        "pack_linear: linear: expected finite float32 numbers, got nan",
    ),
    (
        lambda: pack_linear(ONES, unscale=1e39),
        "pack_linear: unscale: expected finite float32 numbers, got 1e+39",
    ),
    (
        lambda: pack_linear(ONES.astype(np.float64), unscale=float("inf")),
        "pack_linear: unscale: expected finite float64 numbers, got inf",
    ),
    (
        lambda: pack_linear(ONES, ties=ZERO),
        "pack_linear: geometry: expected one with a non-zero plane, as ties 'zero' needs it, "
        "got one without",
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


def test_read_only_inputs_are_fine() -> None:
    assert pack_linear(read_only(ONES.copy()), read_only(ONES.copy()), ONES.copy())[1] == 256


def test_a_state_may_be_the_next_one_or_lie_beside_it() -> None:
    memory = np.zeros(20, np.float32)
    pack_linear(ONES[:10], memory[:10], memory[10:])
    assert (memory[10:] == np.float32(0.1)).all()
    assert (memory[:10] == 0).all()
    pack_linear(ONES[:10], memory[:10], memory[:10].copy().data)
    pack_linear(ONES[:10], memory[:10], memory[:10])
    assert (memory == np.float32(0.1)).all()


def test_a_state_at_any_byte() -> None:
    for start in range(1, 4):
        memory = np.zeros(1024 + 4, np.uint8)
        x = np.frombuffer(memory.data, np.float32, 256, start)
        x[:] = 3
        pack_linear(ONES, x, x, linear=(0.0, 0.0, 0.0, 0.5))
        assert (x == 0.5).all()
