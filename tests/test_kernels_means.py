"""Chunk scales and the tally of means: what the kernels refuse, and in which words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hvd_sign.core import kernels

pytestmark = pytest.mark.quick

GEOMETRY = kernels.Geometry(128, 1, False, 0, True)
PLAIN = kernels.Geometry(128, 1)
SIZES = (100, 50)


def left(size: int, dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    kept, sent = np.zeros(size, dtype), np.zeros(1, np.float32)
    return kept, kept, sent, sent


def tally(ballots: Any = None, geometry: kernels.Geometry = GEOMETRY, **changes: Any) -> Any:
    options = {
        "shard": 0,
        "ties": 0,
        "key": 1,
        "first_blocks": np.array([0, 64]),
        "ordinals": np.arange(2, dtype=np.uint64),
        "lengths": np.array(SIZES, np.uint64),
        "unsaid": [left(size) for size in SIZES],
        **changes,
    }
    if ballots is None:
        ballots = np.zeros(3 * geometry.message_bytes, np.uint8)
    verdict = np.zeros(geometry.message_bytes, np.uint8)
    kernels.tally_means(ballots, geometry, verdict, **options)
    return verdict


@pytest.mark.parametrize(
    ("error", "changes", "sentence"),
    [
        (ValueError, {"geometry": PLAIN}, "geometry: expected one with chunk scales, got one with"),
        (
            ValueError,
            {"first_blocks": np.array([0, 65])},
            "first_blocks: expected tensors one after another, each from a whole chunk on, got ",
        ),
        (
            ValueError,
            {"lengths": np.array([100, 0], np.uint64)},
            "lengths: expected those of tensors that fill the bucket, got others",
        ),
        (ValueError, {"shard": 1}, "shard: expected 0 to 0, got 1"),
        (ValueError, {"ties": 1}, "geometry: expected one with a non-zero plane, as ties 'zero'"),
        (ValueError, {"unsaid": []}, "unsaid: expected 2 items, one a tensor, got 0"),
        (ValueError, {"unsaid": [left(100), left(49)]}, "unsaid: expected 50 items, got 49"),
        (
            TypeError,
            {"unsaid": [left(100), left(50, np.float64)]},
            "unsaid: expected a contiguous float32 array, got float64",
        ),
    ],
)
def test_tallies_that_are_refused(error, changes, sentence):
    with pytest.raises(error, match=re.escape(f"tally_means: {sentence}")):
        tally(**changes)


def test_geometries_and_places_that_are_refused():
    with pytest.raises(ValueError, match=r"Geometry: blocks: expected a multiple of 64.* got 65"):
        kernels.Geometry(65, 1, False, 0, True)
    messages = np.zeros(GEOMETRY.total_bytes, np.uint8)
    options = {"ties": 0, "key": 1, "parity": 0, "ordinal": 0}
    with pytest.raises(ValueError, match=r"pack: first_block: expected a multiple of 64.* got 1"):
        kernels.pack(np.ones(64, np.float32), messages, GEOMETRY, 1, **options)
    one = np.ones(1, np.uint64)
    with pytest.raises(ValueError, match=r"place: geometry: expected one without chunk scales"):
        kernels.place(one, one, None, messages, GEOMETRY, 0)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 0.0])
def test_a_scale_that_is_none_says_nothing(scale):
    ballots = np.zeros((2, GEOMETRY.message_bytes), np.uint8)
    options = {"ties": 0, "key": 1, "parity": 0, "ordinal": 0}
    for ballot, sign in zip(ballots, (1, -1), strict=True):
        signal = np.full(100, 3 * sign, np.float32)
        kernels.pack(signal, ballot, GEOMETRY, 0, **options)
    at = GEOMETRY.scales_offset
    assert ballots[:, at : at + 4].view(np.float32).tolist() == [[3], [3]]
    ballots[1, at : at + 4].view(np.float32)[:] = scale
    out = np.empty(100, np.float32)
    kernels.write_verdict(out, tally(ballots.reshape(-1)), GEOMETRY, 0)
    np.testing.assert_array_equal(out, np.full(100, 1.5, np.float32))


def test_scales_at_the_end_of_the_numbers_leave_numbers():
    ballots = np.zeros((3, GEOMETRY.message_bytes), np.uint8)
    largest = np.finfo(np.float32).max
    for ballot in ballots:
        signal = np.full(100, largest, np.float32)
        kernels.pack(signal, ballot, GEOMETRY, 0, ties=0, key=1, parity=0, ordinal=0)
    unsaid = [left(size) for size in SIZES]
    out = np.empty(100, np.float32)
    kernels.write_verdict(out, tally(ballots.reshape(-1), unsaid=unsaid), GEOMETRY, 0, scale=2)
    assert ((out > 0) & (out <= largest)).all()
    assert all(np.isfinite(array).all() for row in unsaid for array in row)
