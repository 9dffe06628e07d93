"""Compressors of the core, in one process: numpy in, numpy out."""

from __future__ import annotations

import numpy as np
import pytest

import hvd_sign

pytestmark = pytest.mark.quick

DTYPES = ("float16", "float32", "float64")
SHAPES = ((0,), (), (1,), (7,), (8,), (9,), (64,), (3, 5, 7), (1000,))


def array(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.asarray(np.random.default_rng(3).standard_normal(shape), dtype=dtype)


@pytest.mark.parametrize("name", ["none", "fp16", "sign"])
def test_known_compressors(name):
    compressor = getattr(hvd_sign.Compression, name)
    assert callable(compressor.compress)
    assert callable(compressor.decompress)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_none_gives_back_what_it_got(shape, dtype):
    given = array(shape, dtype)
    payload, ctx = hvd_sign.Compression.none.compress(given)
    got = hvd_sign.Compression.none.decompress(payload, ctx)
    assert (got.dtype, got.shape) == (given.dtype, given.shape)
    np.testing.assert_array_equal(got, given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp16_halves_and_restores_the_type(shape, dtype):
    given = array(shape, dtype)
    payload, ctx = hvd_sign.Compression.fp16.compress(given)
    assert payload.dtype == np.float16
    got = hvd_sign.Compression.fp16.decompress(payload, ctx)
    assert (got.dtype, got.shape) == (given.dtype, given.shape)
    np.testing.assert_array_equal(got, given.astype("float16").astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sign_is_one_bit_a_coordinate(shape, dtype):
    given = array(shape, dtype)
    payload, ctx = hvd_sign.Compression.sign.compress(given, name="layer")
    assert payload.dtype == np.uint8
    assert payload.shape == (-(-given.size // 8),)
    bits = np.packbits(given.reshape(-1) < 0, bitorder="little")
    np.testing.assert_array_equal(payload, bits)
    got = hvd_sign.Compression.sign.decompress(payload, ctx)
    assert (got.dtype, got.shape) == (given.dtype, given.shape)
    np.testing.assert_array_equal(got, np.where(given < 0, -1, 1))


def test_sign_of_zero_is_plus():
    payload, ctx = hvd_sign.Compression.sign.compress(np.array([0.0, -0.0, -1.0], dtype="float32"))
    np.testing.assert_array_equal(payload, [0b100])
    np.testing.assert_array_equal(hvd_sign.Compression.sign.decompress(payload, ctx), [1, 1, -1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sign_refuses_what_has_no_sign(bad):
    with pytest.raises(ValueError, match=r"(?i)nan|inf|finite"):
        hvd_sign.Compression.sign.compress(np.array([1.0, bad], dtype="float32"))


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_sign_refuses_other_types(dtype):
    with pytest.raises(TypeError):
        hvd_sign.Compression.sign.compress(np.zeros(3, dtype=dtype))


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_feedback_sends_all_in_the_end(dtype, beta):
    """What came out and what is left are what went in; the latter is told by one payload more."""
    compressor = hvd_sign.Compression.ef_sign(beta)
    draw = np.random.default_rng(4)
    given, sent, left, v = (np.zeros((7, 11)) for _ in range(4))
    for _ in range(300):
        g = draw.standard_normal((7, 11)).astype(dtype)
        payload, ctx = compressor.compress(g, name="layer")
        assert payload.shape == (10,)
        got = compressor.decompress(payload, ctx)
        assert (got.dtype, got.shape) == (g.dtype, g.shape)
        v = beta * v + (1 - beta) * g if beta else g
        p = left + v
        np.testing.assert_allclose(np.abs(got), np.abs(p).mean(), rtol=2e-3)
        sure = np.abs(p) > 1e-2
        np.testing.assert_array_equal(np.sign(got)[sure], np.sign(p)[sure])
        given, sent = given + v, sent + got
        left = given - sent
    assert np.abs(left).max() < 20


def test_error_feedback_literally():
    compressor = hvd_sign.Compression.ef_sign()
    for name in "ab":
        payload, ctx = compressor.compress(np.array([1, -1, 6, 0], "float32"), name=name)
        assert payload.tolist() == [0b0010]
        assert compressor.decompress(payload, ctx).tolist() == [2, -2, 2, 2]
    payload, ctx = compressor.compress(np.array([2, 0, -8, 1], "float32"), name="a")  # e: -1 1 4 -2
    assert payload.tolist() == [0b1100]
    assert compressor.decompress(payload, ctx).tolist() == [1.75, 1.75, -1.75, -1.75]
    with pytest.raises(ValueError, match="expected one, got None"):
        compressor.compress(np.ones(4, "float32"))
    with pytest.raises(ValueError, match="expected 4 coordinates of 'a', got 5"):
        compressor.compress(np.ones(5, "float32"), name="a")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["ef_sign", "onebit"])
def test_what_is_left_is_what_was_not_restored(kind, dtype):
    """To the rounding of the type; with a scale for each 4096 coordinates, or for all."""
    compressor = getattr(hvd_sign.Compression, kind)()
    g = np.random.default_rng(5).standard_normal(5000).astype(dtype)
    g[4096:] *= 100
    payload, ctx = compressor.compress(g, name="layer")
    first = compressor.decompress(payload, ctx)
    sizes = np.unique(np.abs(first).astype("float32"))
    assert (first.dtype, len(sizes)) == (dtype, 2 if kind == "onebit" else 1)
    left = g.astype("float32") - first.astype("float32")
    payload, ctx = compressor.compress(np.zeros_like(g), name="layer")
    second = compressor.decompress(payload, ctx)
    np.testing.assert_array_equal(np.signbit(second), left < 0)
    by = [slice(0, 4096), slice(4096, None)] if kind == "onebit" else [slice(None)]
    for part in by:
        wanted = np.abs(left[part]).mean(dtype="float64")
        np.testing.assert_array_equal(np.abs(second[part]), np.float32(wanted).astype(dtype))


def test_compressing_changes_nothing_in_the_array():
    given = array((100,), "float32")
    before = given.copy()
    for name in ("none", "fp16", "sign"):
        compressor = getattr(hvd_sign.Compression, name)
        payload, ctx = compressor.compress(given)
        compressor.decompress(payload, ctx)
    np.testing.assert_array_equal(given, before)


def test_a_compressor_of_ones_own_fits():
    class Half(hvd_sign.Compressor):
        def compress(self, array, name=None):
            return array / 2, None

        def decompress(self, payload, ctx):
            return payload * 2

    payload, ctx = Half().compress(np.ones(3))
    np.testing.assert_array_equal(Half().decompress(payload, ctx), 1)


def test_statistics_are_a_snapshot():
    first = hvd_sign.vote_stats()
    assert first.asdict() == hvd_sign.vote_stats().asdict()
    first.votes += 1
    assert hvd_sign.vote_stats().votes == first.votes - 1


def test_momentum_belongs_to_a_name():
    """Signs of v = 0.5 v + 0.5 g, two tensors in turns."""
    compressor = hvd_sign.Compression.signum(0.5)
    kept = {"a": np.zeros(5, np.float32), "b": np.zeros(70, np.float32)}
    for step in range(6):
        for name, v in kept.items():
            g = np.random.default_rng([step, v.size]).standard_normal(v.size).astype(np.float32)
            v[:] = np.float32(0.5) * v + np.float32(0.5) * g
            payload, context = compressor.compress(g, name)
            assert payload.nbytes == -(-v.size // 8)
            np.testing.assert_array_equal(compressor.decompress(payload, context), np.sign(v))


def test_lion_votes_on_another_mean_than_it_keeps():
    compressor = hvd_sign.Compression.lion(0.5, 0.75)
    payload, context = compressor.compress(np.array([4.0, -4.0], np.float32), "t")  # m = 1, -1
    payload, context = compressor.compress(np.array([-0.5, 2.0], np.float32), "t")  # 0.25, 0.5
    np.testing.assert_array_equal(compressor.decompress(payload, context), [1, 1])


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        (np.ones(3, np.float32), None, "expected one, got None"),
        (np.ones(4, np.float32), "t", "expected 3 coordinates of 't', got 4"),
        (np.array([1, np.nan, 1], np.float32), "t", "'t': expected finite numbers, got NaN or Inf"),
    ],
)
def test_momentum_that_cannot_be_kept_is_refused(given, name, message):
    compressor = hvd_sign.Compression.signum()
    compressor.compress(np.ones(3, np.float32), "t")
    with pytest.raises(ValueError, match=message):
        compressor.compress(given, name)


def test_what_asks_for_a_vote_compresses_nothing():
    for algorithm, shown in (("sign", "sign"), ("signum", r"signum\(beta=0.9\)")):
        with pytest.raises(ValueError, match=f"hvd.Compression.{shown} asks for a vote"):
            hvd_sign.VoteCompressor(algorithm).compress(np.ones(3, np.float32), "t")
    with pytest.raises(ValueError, match="algorithm: expected an Algorithm, or one of 'sign'"):
        hvd_sign.VoteCompressor("magic")
