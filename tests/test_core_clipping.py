"""Arrays that are clipped before a vote, in every floating type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from hvd_sign.frontend.clipping import clip_values, multiply, norm_of, shrinking
from hvd_sign.runtime.comparing import checksum, options_text

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values(dtype):
    given = np.array([[0.5, -3.0, 0.125], [np.nan, np.inf, -np.inf]], dtype)
    out = np.empty_like(given)
    clip_values(given, 0.25, out)
    wanted = np.array([[0.25, -0.25, 0.125], [np.nan, np.inf, -np.inf]])
    np.testing.assert_array_equal(out.astype(np.float64), wanted)
    assert float(given[0, 1]) == -3.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factor_is_not_rounded_to_a_short_type(dtype):
    """1.005859375 is 1 in bf16, and 3 times that lies nearer to the next number."""
    array = np.array([3.0, np.inf], dtype)
    multiply(array, 1.005859375, out=array)
    wanted = np.array([3.0 * 1.005859375, np.inf]).astype(dtype)
    np.testing.assert_array_equal(array.astype(np.float64), wanted.astype(np.float64))
    assert array[0] > 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype):
    assert norm_of(np.array([3.0, 4.0, np.nan, -np.inf], dtype)) == 5.0
    assert norm_of(np.zeros((0, 3), dtype)) == 0.0
    assert norm_of(np.full((1000, 100), 2, dtype)) == pytest.approx(2 * 100_000**0.5, rel=1e-14)


def test_the_norm_of_all_is_bounded():
    assert shrinking([3.0, 4.0], 10.0) == 1.0
    assert shrinking([3.0, 4.0], 1.0) == pytest.approx(1 / (5 + 1e-6), rel=1e-15)
    assert shrinking([], 1.0) == 1.0


def test_checksums_tell_what_changes():
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    same = checksum(numbers)
    assert same == checksum(numbers.copy()) == checksum(np.asfortranarray(numbers))
    swapped = numbers[[1, 0, 2]]
    negative = numbers.copy()
    negative[0, 0] = -0.0
    others = [swapped, negative, numbers.astype(ml_dtypes.bfloat16), numbers[:0], np.float32(3)]
    assert len({same, *map(checksum, others)}) == 6
    assert 0 <= same < 2**64


def test_options_as_text():
    told = {"rate": np.float32(0.5), "name": "one", "of": object(), "betas": (0.9, 0.99)}
    assert options_text(told, {"name"}) == options_text({**told, "name": "two"}, {"name"})
    assert options_text(told, ()) != options_text({**told, "name": "two"}, ())
    assert options_text(told, ()) == options_text({**told, "of": object()}, ())
    assert options_text(told, ()) != options_text({**told, "rate": np.float32(0.25)}, ())
