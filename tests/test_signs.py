"""The numpy face: pack_signs, unpack_signs, majority_vote."""

from __future__ import annotations

import itertools

import hypothesis.extra.numpy as some
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from kernel_reference import coin_key, coin_word

import hvd_sign
from hvd_sign import majority_vote, pack_signs, unpack_signs
from hvd_sign.core import kernels

pytestmark = pytest.mark.quick

finite = {"allow_nan": False, "allow_infinity": False}


def test_pack_signs_literals() -> None:
    assert pack_signs(np.array([1, -2, 0, -0.5], np.float32)).tolist() == [0b1010]
    assert pack_signs(np.array([-0.0, -1e-45, 1e-45], np.float32)).tolist() == [0b010]
    assert pack_signs(-np.ones((3, 3))).tolist() == [255, 1]
    assert pack_signs(np.zeros(17, np.float16)).tolist() == [0, 0, 0]
    assert pack_signs(np.array([], np.float32)).tolist() == []
    assert pack_signs(np.float64(-2)).tolist() == [1]
    assert pack_signs(-np.ones(64, np.float32)).dtype == np.uint8


def test_pack_signs_refuses_what_has_no_sign() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="pack_signs: x: expected finite numbers, got NaN or"):
            pack_signs(np.array([1, bad], np.float32))
    with pytest.raises(TypeError, match="pack_signs: x: expected one of float32, "):
        pack_signs(np.array([1, -1]))


def test_gaps_are_no_hindrance() -> None:
    x = -np.arange(40, dtype=np.float32).reshape(4, 10)
    assert pack_signs(x.T).tolist() == pack_signs(np.ascontiguousarray(x.T)).tolist()


def test_unpack_signs_literals() -> None:
    out = unpack_signs(np.array([0b1010, 1], np.uint8), 9)
    assert out.tolist() == [1, -1, 1, -1, 1, 1, 1, 1, -1]
    assert out.dtype == np.float32
    for dtype in (np.float16, np.float64):
        out = unpack_signs(np.array([0b10], np.uint8), 3, dtype)
        assert out.tolist() == [1, -1, 1]
        assert out.dtype == dtype
    assert unpack_signs(np.zeros(0, np.uint8), 0).shape == (0,)


def test_unpack_signs_errors() -> None:
    with pytest.raises(
        ValueError, match=r"unpack_signs: bits: expected uint8\[2\], got uint8\[1\]"
    ):
        unpack_signs(np.zeros(1, np.uint8), 9)
    with pytest.raises(TypeError, match=r"unpack_signs: bits: expected uint8\[1\], got int64"):
        unpack_signs(np.zeros(1, np.int64), 8)
    with pytest.raises(TypeError, match=r"unpack_signs: bits: expected uint8\[1\], got list"):
        unpack_signs([0], 8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unpack_signs: dtype: expected one of float32, "):
        unpack_signs(np.zeros(1, np.uint8), 8, np.int32)


def test_majority_vote_literals() -> None:
    ballots = np.array([[0b011], [0b001], [0b101]], np.uint8)
    verdict = majority_vote(ballots, 3)
    assert verdict.tolist() == [-1, 1, 1]
    assert verdict.dtype == np.int8
    even = np.array([[0b0011], [0b0101]], np.uint8)
    assert majority_vote(even, 4, ties="zero").tolist() == [-1, 0, 0, 1]
    assert majority_vote(even, 4, ties="positive").tolist() == [-1, 1, 1, 1]
    assert majority_vote(np.zeros((2, 0), np.uint8), 0).shape == (0,)


def test_majority_vote_errors() -> None:
    one = np.zeros((3, 2), np.uint8)
    with pytest.raises(
        ValueError, match="ties: expected one of 'coin', 'zero', 'positive', got 'x'"
    ):
        majority_vote(one, 16, ties="x")
    with pytest.raises(
        ValueError, match=r"majority_vote: ballots: .* uint8\[3, 3\], got uint8\[3, 2\]"
    ):
        majority_vote(one, 17)
    with pytest.raises(ValueError, match=r"expected uint8\[1, 2\], got uint8\[2\]"):
        majority_vote(one[0], 16)
    with pytest.raises(ValueError, match=r"expected uint8\[1, 2\], got uint8\[0, 2\]"):
        majority_vote(one[:0], 16)
    with pytest.raises(TypeError, match=r"ballots: expected uint8\[3, 2\], got float64"):
        majority_vote(one.astype(float), 16)


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
def test_every_vote(voters: int, ties: str) -> None:
    votes = np.array(list(itertools.product((1.0, -1.0), repeat=voters)), np.float32).T
    ballots = np.stack([pack_signs(row) for row in votes])
    d = votes.shape[1]
    total = votes.sum(0)
    coins = coin_word(coin_key(5, "tie", 6), 0, 0)
    for i, verdict in enumerate(majority_vote(ballots, d, ties=ties, seed=5, step=6)):
        toss = {"coin": -1 if coins >> i & 1 else 1, "zero": 0, "positive": 1}[ties]
        assert verdict == (np.sign(total[i]) or toss)


def test_coins_are_fair_and_repeatable() -> None:
    d = 100_000
    ballots = np.stack([np.zeros(d // 8, np.uint8), np.full(d // 8, 255, np.uint8)])
    one = majority_vote(ballots, d, seed=1, step=1)
    assert (one == majority_vote(ballots, d, seed=1, step=1)).all()
    assert set(one.tolist()) == {-1, 1}
    # Within five standard deviations, as are the agreements of what must be independent.
    limit = 5 * np.sqrt(d)
    assert abs(int(one.astype(int).sum())) < limit
    for seed, step in ((1, 2), (2, 1), (-1, 1)):
        other = majority_vote(ballots, d, seed=seed, step=step)
        assert abs(int(one.astype(int) @ other)) < limit
    assert abs(int(one[1:].astype(int) @ one[:-1])) < limit


def test_ballots_bits_past_the_end_are_ignored() -> None:
    for d in (1, 7, 9, 63, 65):
        ballots = np.full((2, -(-d // 8)), 255, np.uint8)
        for ties in ("coin", "zero", "positive"):
            assert majority_vote(ballots, d, ties=ties).tolist() == [-1] * d


@settings(deadline=None)  # a loaded machine is no failure
@given(
    some.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        st.integers(0, 400),
        elements=st.floats(width=16, **finite),
    )
)
def test_round_trip(x: np.ndarray) -> None:
    bits = pack_signs(x)
    assert bits.tolist() == np.packbits(x < 0, bitorder="little").tolist()
    assert (unpack_signs(bits, x.size, x.dtype) == np.where(x < 0, -1, 1)).all()


@settings(deadline=None)  # a loaded machine is no failure
@given(st.data())
def test_any_vote(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(0, 300)))
    negative = data.draw(some.arrays(bool, shape))
    ballots = np.packbits(negative, axis=1, bitorder="little")
    total = (1 - 2 * negative.astype(int)).sum(0)
    ties = data.draw(st.sampled_from(["zero", "positive"]))
    expected = np.sign(total) if ties == "zero" else np.where(total < 0, -1, 1)
    assert majority_vote(ballots, shape[1], ties=ties).tolist() == expected.tolist()


def test_the_kernels_are_used() -> None:
    assert kernels.implementation() in kernels.implementations()
    assert hvd_sign.pack_signs is pack_signs
