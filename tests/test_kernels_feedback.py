"""pack_linear with error feedback, against its definition in numpy: the residual itself is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kernel_reference import (
    COIN,
    DTYPES,
    KINDS,
    POSITIVE,
    ZERO,
    Block,
    Layout,
    as_signal,
    canonical_sum,
    implementation,  # noqa: F401
    numbers,
    pack,
    patterns,
)

from hvd_sign.core import kernels
from hvd_sign.core.residuals import unsaid

pytestmark = pytest.mark.usefixtures("implementation")

CHUNK = 4096
GRADIENT = (0.0, 1.0, 0.0, 0.0)
MOMENTUM = (0.9, 0.1, 0.9, 0.1)
LION = (0.9, 0.1, 0.99, 0.01)
KEY, PARITY, ORDINAL = 9, 1, 4


@pytest.fixture(autouse=True)
def overflow_is_meant() -> Iterator[None]:
    with np.errstate(over="ignore"):
        yield


def normal(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x)


class Definition:
    """A tensor's error feedback: e and a momentum, as the paper has them."""

    def __init__(self, count: int, dtype: str, linear: Any, ties: int) -> None:
        wide = np.float64 if dtype == "float64" else np.float32
        self.e, self.m = np.zeros(count, wide), np.zeros(count, wide)
        self.linear, self.ties = linear, ties

    def step(self, g: np.ndarray, u: float, key: int) -> tuple[list[Block], int, int, float]:
        wide, one = self.e.dtype, self.e.dtype.type
        a, b, c, d = (one(x) for x in self.linear)
        with np.errstate(all="ignore"):
            signal, m = one(u) * g, self.m
            if self.linear != GRADIENT:
                signal, m = normal(a * m + b * signal), normal(c * m + d * signal)
            p = normal(signal + self.e)
        for start in range(0, p.size, CHUNK):
            chunk = slice(start, start + CHUNK)
            if not (np.isfinite(p[chunk]).all() and np.isfinite(m[chunk]).all()):
                p[chunk], m[chunk] = np.nan, self.m[chunk]
        raw = p.view(KINDS[wide.name].bits)
        blocks, nonfinite, finite = pack(
            raw.tolist(), KINDS[wide.name], self.ties, key=key, parity=PARITY, ordinal=ORDINAL
        )
        voting = np.isfinite(p)
        total = canonical_sum(p[voting].view(raw.dtype), wide.name) if finite else 0.0
        cast = np.zeros(p.size, wide)
        for i, block in enumerate(blocks):
            if not block.active:
                continue
            for j in range(64 * i, min(64 * i + 64, p.size)):
                if self.ties != ZERO or block.nonzero >> j % 64 & 1:
                    cast[j] = -1 if block.signs >> j % 64 & 1 else 1
        self.sent = np.float32(min(total / finite, np.finfo(np.float32).max) if finite else 0)
        self.e = np.where(voting, p - one(self.sent) * cast, self.e)
        self.m = m
        if self.ties != ZERO:
            blocks = [block._replace(nonzero=0) for block in blocks]
        return blocks, nonfinite, finite, total


class Kept:
    """The same as the kernels keep it; in place, or in two sets of arrays that take turns."""

    def __init__(self, count: int, dtype: str, linear: Any, ties: int, *, in_place: bool) -> None:
        wide = np.float64 if dtype == "float64" else np.float32
        self.count, self.linear, self.ties = count, linear, ties

        def arrays() -> list[Any]:
            return [np.zeros(count, wide), np.zeros(count, wide), np.zeros(chunks, np.float32)]

        chunks = -(-count // CHUNK)
        self.now = arrays()
        self.then = self.now if in_place else arrays()
        self.layout = Layout(-(-count // 64), 3, ties == ZERO)

    def step(self, signal: Any, u: float, key: int, **keywords: bool) -> tuple[list[Block], Any]:
        buffer = self.layout.buffer()
        (m, p, sent), (next_m, next_p, next_sent) = self.now, self.then
        state = (None, None) if self.linear == GRADIENT else (m, next_m)
        seen = kernels.pack_linear(
            signal,
            *state,
            buffer,
            self.layout.geometry(),
            0,
            linear=self.linear,
            unscale=u,
            feedback=(p, next_p, sent, next_sent),
            ties=self.ties,
            key=key,
            parity=PARITY,
            ordinal=ORDINAL,
            want_abs=True,
            **keywords,
        )
        return [self.layout.read(buffer, g) for g in range(self.layout.blocks)], seen

    def end(self, mean: np.float32) -> None:
        sent = self.then[2]
        sent[np.isnan(sent)] = mean
        self.now, self.then = self.then, self.now

    @property
    def residual(self) -> np.ndarray:
        return unsaid(self.now[1], self.now[2], exact=self.ties == ZERO)


def check(
    gradients: list[np.ndarray], dtype: str, linear: Any, ties: int, u: float = 1.0
) -> Definition:
    """Some steps, given gradients' bits: what is packed, and what is left."""
    count = gradients[0].size
    right = Definition(count, dtype, linear, ties)
    ways = [Kept(count, dtype, linear, ties, in_place=way) for way in (True, False)]
    for turn, raw in enumerate(gradients):
        signal, keywords = as_signal(raw, dtype)
        blocks, *seen = right.step(numbers(raw, dtype), u, KEY + turn)
        for kept in ways:
            before = [array.copy() for array in kept.now]
            got, noticed = kept.step(signal, u, KEY + turn, **keywords)
            assert got == blocks
            assert list(noticed) == seen
            if kept.then is not kept.now:
                for array, same in zip(kept.now, before, strict=True):
                    assert array.tobytes() == same.tobytes()
            kept.end(right.sent)
            np.testing.assert_array_equal(kept.residual, right.e)
            if linear != GRADIENT:
                np.testing.assert_array_equal(kept.now[0], right.m)
    return right


def few(dtype: str, count: int, rng: np.random.Generator, steps: int = 3) -> list[np.ndarray]:
    """Bits of steps' gradients, small whole numbers among others: sums that are zero at times."""
    kind = KINDS[dtype]
    fraction = (kind.infinity & -kind.infinity) - 1
    steps_ = []
    for _ in range(steps):
        raw = patterns(dtype, count, rng) & kind.bits(kind.sign | kind.infinity // 2 | fraction)
        whole = rng.integers(-2, 3, count).astype("float32" if dtype == "bfloat16" else dtype)
        bits = whole.view(KINDS["float32"].bits) >> 16 if dtype == "bfloat16" else whole
        bits = bits.astype(kind.bits) if dtype == "bfloat16" else bits.view(kind.bits)
        steps_.append(np.where(rng.random(count) < 0.5, raw, bits).astype(kind.bits))
    return steps_


def test_literally() -> None:
    # |p| has the mean 2 in both steps; the zero is cast as +1.
    kept = Kept(4, "float32", GRADIENT, POSITIVE, in_place=True)
    blocks, seen = kept.step(np.array([1, -1, 6, 0], np.float32), 1.0, KEY)
    assert blocks == [Block(0b0010, True, 0)]
    assert seen == (0, 4, 8.0)
    assert np.isnan(kept.now[2]).all()
    kept.end(np.float32(2))
    assert kept.residual.tolist() == [-1, 1, 4, -2]
    blocks, seen = kept.step(np.array([4, 0, -8, 4], np.float16), 0.5, KEY)
    assert kept.now[1].tolist() == [1, 1, 0, 0]
    assert blocks == [Block(0, True, 0)]
    assert seen == (0, 4, 2.0)


def test_zeros_say_nothing_under_ties_zero_and_in_blocks_of_zeros() -> None:
    g = np.zeros(128, np.float32)
    g[:3] = 3, 0, -3
    for ties, after in ((ZERO, [0, 0, 0]), (POSITIVE, [0, -3, 0])):
        kept = Kept(128, "float32", GRADIENT, ties, in_place=True)
        kept.step(g, 1.0, KEY)
        kept.end(np.float32(3))
        assert kept.residual[:3].tolist() == after
        assert (kept.residual[64:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_every_length(dtype: str, ties: int) -> None:
    rng = np.random.default_rng(13)
    for count in range(0, 301, 1 if ties == COIN else 7):
        linear = (GRADIENT, GRADIENT, MOMENTUM, LION)[count % 4]
        check(few(dtype, count, rng), dtype, linear, ties, (1.0, 2.0**-7)[count % 3 == 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_around_chunks_and_where_they_are_not_finite(dtype: str) -> None:
    rng = np.random.default_rng(14)
    for count in (4095, 4097, 8300):
        for ties in (COIN, ZERO):
            given = few(dtype, count, rng, steps=4)
            for g in given:
                g[128:192] = 0  # an inactive block
            given[1][count - 1] = KINDS[dtype].infinity
            given[2][7] = KINDS[dtype].infinity | 1
            check(given, dtype, GRADIENT, ties, 2.0**-3)
            check(given[:2], dtype, LION, ties)


def test_overflow_abstains_and_what_is_below_the_normal_numbers_is_zero() -> None:
    top, tiny = np.finfo(np.float32).max, np.finfo(np.float32).tiny
    g = np.array([[1, top, 0, tiny * 2], [1, top, 1, tiny * 3], [0, 0, 0, 1]], np.float32)
    check(list(np.repeat(g, 9, axis=1).view(np.uint32)), "float32", GRADIENT, COIN)
    h = np.array([[tiny, -tiny], [-1.5 * tiny, 0], [tiny, 0]], np.float32)
    check(list(h.view(np.uint32)), "float32", GRADIENT, COIN)


@pytest.mark.parametrize("linear", [GRADIENT, MOMENTUM])
def test_an_absent_gradient_counts_as_zeros(linear: Any) -> None:
    rng = np.random.default_rng(15)
    for count in (1, 200, CHUNK + 200):
        right = Definition(count, "float32", linear, COIN)
        kept = Kept(count, "float32", linear, COIN, in_place=True)
        g = rng.standard_normal(count).astype(np.float32)
        for signal, turn in ((g, 0), (None, 1), (None, 2)):
            blocks, *_ = right.step(g * (signal is not None), 1.0, turn)
            assert kept.step(signal, 1.0, turn)[0] == blocks
            kept.end(right.sent)
        np.testing.assert_array_equal(kept.residual, right.e)


def test_a_thousand_steps_lose_nothing() -> None:
    """What was sent and what is left are what came, to fp32 rounding."""
    rng = np.random.default_rng(16)
    count = CHUNK + 203
    kept = Kept(count, "float32", GRADIENT, COIN, in_place=False)
    came, went = np.zeros(count), np.zeros(count)
    for turn in range(1000):
        g = (rng.standard_normal(count) + 0.25).astype(np.float32)
        blocks, (_, finite, total) = kept.step(g, 1.0, turn)
        mean = np.float32(total / finite)
        signs = np.array([block.signs for block in blocks], np.uint64).view(np.uint8)
        bits = np.unpackbits(signs, bitorder="little")[:count]
        kept.end(mean)
        came += g
        went += mean * (1.0 - 2.0 * bits)
        if turn % 250 == 249:
            np.testing.assert_allclose(went + kept.residual, came, atol=2e-3)
            assert np.abs(kept.residual).max() < 100


KEPT, SENT = np.zeros(100, np.float32), np.zeros(1, np.float32)
MEMORY = np.zeros(220, np.float32)


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ((KEPT, KEPT[:99].copy(), SENT, SENT), "feedback: next: expected 100 items, got 99"),
        ((KEPT, KEPT, np.zeros(2, np.float32), SENT), "feedback: sent: expected 1 items, got 2"),
        ((KEPT, KEPT, SENT, np.zeros(1)), "feedback: next_sent: expected a contiguous float32"),
        ((KEPT.astype(float), KEPT, SENT, SENT), "feedback: kept: .* float32 array, got float64"),
        ((MEMORY[:100], MEMORY[50:150], SENT, SENT), "apart from feedback: kept"),
        ((MEMORY[:100], MEMORY[120:], SENT, SENT), "apart from gradient"),
    ],
)
def test_what_does_not_fit_is_refused(feedback: Any, message: str) -> None:
    layout = Layout(2, 1)
    gradient = MEMORY[110:210] if "gradient" in message else KEPT + 1
    with pytest.raises((TypeError, ValueError), match=f"pack_linear: .*{message}"):
        kernels.pack_linear(
            gradient,
            None,
            None,
            layout.buffer(),
            layout.geometry(),
            0,
            linear=GRADIENT,
            feedback=feedback,
            ties=COIN,
            key=0,
            parity=0,
            ordinal=0,
        )
