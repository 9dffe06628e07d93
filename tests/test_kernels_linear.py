"""pack_linear against its formula in numpy, and the reference of packing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("implementation")]

Factors = tuple[float, float, float, float]
MOMENTUM: Factors = (0.9, 0.1, 0.9, 0.1)
LION: Factors = (0.9, 0.1, 0.99, 0.01)
SIGN: Factors = (0.0, 1.0, 0.0, 0.0)
CHUNK = 4096


@pytest.fixture(autouse=True)
def overflow_is_meant() -> Iterator[None]:
    with np.errstate(over="ignore", invalid="ignore"):
        yield


def formula(
    m: np.ndarray, g: np.ndarray, linear: Factors, u: float, *, subnormals: bool = False
) -> tuple[Any, Any]:
    """Signal and next state, in the type of m and g; what is below the normal numbers is 0."""
    if linear == SIGN and u == 1 and not m.any():
        return g.copy(), m.copy()  # the gradient as it is
    a, b, c, d, u = (m.dtype.type(x) for x in (*linear, u))
    made = a * m + b * (u * g), c * m + d * (u * g)
    if subnormals:
        return made
    return tuple(np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x) for x in made)


class Outcome(NamedTuple):
    blocks: list[Block]
    nonfinite: int
    finite: int
    abs_sum: float
    next_state: np.ndarray


def expected(
    m: np.ndarray,
    g: np.ndarray,
    linear: Factors,
    u: float,
    ties: int,
    parity: int = 1,
    *,
    subnormals: bool = False,
) -> Outcome:
    """What must come of a state and a gradient, both in the type of the arithmetic."""
    s, after = formula(m, g, linear, u, subnormals=subnormals)
    voting = []
    for start in range(0, m.size, CHUNK):
        chunk = slice(start, start + CHUNK)
        if np.isfinite(s[chunk]).all() and np.isfinite(after[chunk]).all():
            voting.append(s[chunk])
        else:
            s[chunk] = np.nan
            after[chunk] = m[chunk]
    name = str(m.dtype)
    raw = s.view(KINDS[name].bits)
    blocks, nonfinite, finite = pack(
        raw.tolist(), KINDS[name], ties, key=9, parity=parity, ordinal=4
    )
    if ties != ZERO:
        blocks = [block._replace(nonzero=0) for block in blocks]
    total = canonical_sum(np.concatenate(voting).view(raw.dtype), name) if voting else 0.0
    return Outcome(blocks, nonfinite, finite, total, after)


def run(
    gradient: np.ndarray | None,
    m: np.ndarray | None,
    target: np.ndarray | None,
    linear: Factors,
    ties: int,
    *,
    count: int,
    u: float = 1.0,
    bfloat16: bool = False,
) -> tuple[list[Block], tuple[int, int, float]]:
    """Packs as :func:`expected` says; the blocks, and what was returned."""
    layout = Layout(-(-count // 64), 3, ties == ZERO)
    buffer = layout.buffer()
    seen = kernels.pack_linear(
        gradient,
        m,
        target,
        buffer,
        layout.geometry(),
        0,
        linear=linear,
        unscale=u,
        ties=ties,
        key=9,
        parity=1,
        ordinal=4,
        want_abs=True,
        bfloat16=bfloat16,
    )
    return [layout.read(buffer, g) for g in range(layout.blocks)], seen


def check(
    gradient: np.ndarray, dtype: str, m: np.ndarray, linear: Factors, ties: int, u: float = 1.0
) -> None:
    """In place and into another array, given the gradient's bits."""
    signal, keywords = as_signal(gradient, dtype)
    right = expected(m, numbers(gradient, dtype), linear, u, ties)
    for in_place in (True, False):
        state = m.copy()
        target = state if in_place else np.full_like(m, 7)
        blocks, seen = run(
            signal, state, target, linear, ties, count=gradient.size, u=u, **keywords
        )
        assert blocks == right.blocks
        assert seen == (right.nonfinite, right.finite, right.abs_sum)
        assert target.tobytes() == right.next_state.tobytes()
        assert in_place or state.tobytes() == m.tobytes()


def moderate(dtype: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Bits of numbers whose sums are finite, zeros and subnormals among them."""
    kind = KINDS[dtype]
    raw = patterns(dtype, count, rng)
    fraction = (kind.infinity & -kind.infinity) - 1
    return raw & kind.bits(kind.sign | kind.infinity // 2 | fraction)


def state_for(dtype: str, count: int, rng: np.random.Generator) -> np.ndarray:
    name = "float64" if dtype == "float64" else "float32"
    return moderate(name, count, rng).view(name)


def test_momentum_literally() -> None:
    # Sums of powers of two: exact.
    m = np.array([4, -4, 1, -1, 0, 8], np.float32)
    g = np.array([-8, 8, -1, 3, 0, -8], np.float32)
    blocks, seen = run(g, m, m, (0.5, 0.5, 0.5, 0.5), POSITIVE, count=6)
    assert m.tolist() == [-2, 2, 0, 1, 0, 0]
    assert blocks == [Block(0b000001, True, 0)]
    assert seen == (0, 6, 5.0)


def test_lion_literally() -> None:
    m = np.array([4, -4, 1], np.float32)
    after = np.zeros(3, np.float32)
    g = np.array([-16, 8, 0], np.float16)
    blocks, seen = run(g, m, after, (0.5, 0.25, 0.75, 1.0), POSITIVE, count=3, u=0.5)
    assert m.tolist() == [4, -4, 1]
    assert after.tolist() == [-5, 1, 0.75]
    assert blocks == [Block(0b010, True, 0)]  # 0, -1, 0.5
    assert seen == (0, 3, 1.5)


def test_factors_are_rounded_first_and_nothing_is_fused() -> None:
    # 0.1 * x - 0.1 * x, whose first product would stay exact in a fused addition.
    m = np.array([1 + 2**-23], np.float32)
    for x, linear in ((-m, (0.1, 0.1, 0.1, 0.1)), (m, (0.1, -0.1, 0.1, -0.1))):
        after = m.copy()
        blocks, _ = run(x, after, after, linear, COIN, count=1)
        assert after[0] == 0
        assert blocks == [Block(0, False, 0)]
    wide = m.astype(np.float64)
    run(np.zeros(1), wide, wide, (0.1, 0, 0.1, 0), COIN, count=1)
    assert wide[0] == 0.1 * float(m[0])
    narrow = m.copy()
    run(np.zeros(1, np.float32), narrow, narrow, (0.1, 0, 0.1, 0), COIN, count=1)
    assert narrow[0] == np.float32(0.1) * m[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_every_length(dtype: str, ties: int) -> None:
    rng = np.random.default_rng(3)
    for count in range(301) if ties == COIN else range(0, 301, 7):
        linear = (MOMENTUM, LION)[count % 2]
        m = state_for(dtype, count, rng)
        check(moderate(dtype, count, rng), dtype, m, linear, ties, (1.0, 2.0**-7)[count % 3 == 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_around_chunks(dtype: str) -> None:
    rng = np.random.default_rng(4)
    for count in (4032, 4095, 4096, 4097, 4161, 8192, 8300):
        for ties, linear in ((COIN, MOMENTUM), (ZERO, LION)):
            m, g = state_for(dtype, count, rng), moderate(dtype, count, rng)
            m[128:192] = 0
            g[128:192] = 0  # an inactive block
            check(g, dtype, m, linear, ties, 2.0**-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("linear", [MOMENTUM, LION])
def test_a_chunk_that_is_not_finite_abstains_and_keeps_its_state(
    dtype: str, linear: Factors
) -> None:
    rng = np.random.default_rng(5)
    count, kind = 3 * CHUNK + 70, KINDS[dtype]
    m, g = state_for(dtype, count, rng), moderate(dtype, count, rng)
    for at in (0, 63, 64, 127, CHUNK - 1, CHUNK, 2 * CHUNK + 130, count - 1):
        for bits in (kind.infinity, kind.infinity | kind.sign, kind.infinity | 1):
            broken = g.copy()
            broken[at] = bits
            check(broken, dtype, m, linear, COIN)
    for value in (np.inf, -np.inf, np.nan):  # from the state
        broken_state = m.copy()
        broken_state[CHUNK + 5] = value
        check(g, dtype, broken_state, linear, ZERO)


def test_overflow_of_either_result_abstains() -> None:
    top = float(np.finfo(np.float32).max)
    big = np.full(CHUNK + 10, top, np.float32)
    small = np.ones_like(big)
    small[3] = top
    raw = big.view(np.uint32)
    check(raw, "float32", small, (1.0, 1.0, 0.5, 0.5), COIN)  # the signal
    check(raw, "float32", small, (0.5, 0.5, 1.0, 1.0), COIN)  # the next state
    check(raw, "float32", small, (0.25, 0.25, 0.25, 0.25), COIN, 4.0)  # the unscaled gradient
    blocks, seen = run(big, small, small, (0.5, 0.5, 1.0, 1.0), COIN, count=small.size)
    # 1 + top is top: the chunk with a second `top` abstains, the other one does not.
    assert seen[:2] == (1, 10)
    assert [block.active for block in blocks] == [False] * 64 + [True]
    assert small[:5].tolist() == [1, 1, 1, top, 1]


@pytest.mark.parametrize("ties", [COIN, ZERO])
def test_zeros_of_either_sign_and_subnormals(ties: int) -> None:
    tiny = np.float32(1e-45)  # the smallest
    row = np.array([0.0, -0.0, tiny, -tiny, 1.0, -1.0], np.float32)
    m, g = np.repeat(row, row.size), np.tile(row, row.size)
    for linear in (MOMENTUM, LION, SIGN, (1.0, 1.0, 1.0, -1.0), (-0.0, 1.0, 1.0, -0.0)):
        check(g.view(np.uint32), "float32", m, linear, ties)
        check(g.view(np.uint32), "float32", m, linear, ties, 0.25)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_absent_gradient_counts_as_zeros(dtype: str) -> None:
    rng = np.random.default_rng(6)
    for count in (1, 64, 200, CHUNK, CHUNK + 200):
        m = state_for(dtype, count, rng)
        for linear in (MOMENTUM, LION):
            right = expected(m, np.zeros_like(m), linear, 0.5, COIN)
            state = m.copy()
            blocks, seen = run(None, state, state, linear, COIN, count=count, u=0.5)
            assert blocks == right.blocks
            assert seen == (right.nonfinite, right.finite, right.abs_sum)
            assert state.tobytes() == right.next_state.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_state_it_counts_as_zeros(dtype: str) -> None:
    rng = np.random.default_rng(7)
    for count in (0, 1, 64, 200, CHUNK + 200):
        raw = moderate(dtype, count, rng)
        signal, keywords = as_signal(raw, dtype)
        g = numbers(raw, dtype)
        for linear, u in ((SIGN, 1.0), (SIGN, 0.5), ((7.0, -3.0, 1.0, 1.0), 1.0)):
            itself = linear == SIGN and u == 1  # no computed number: its subnormals count
            right = expected(np.zeros_like(g), g, linear, u, COIN, subnormals=itself)
            blocks, seen = run(signal, None, None, linear, COIN, count=count, u=u, **keywords)
            assert blocks == right.blocks
            assert seen == (right.nonfinite, right.finite, right.abs_sum)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_start(dtype: str) -> None:
    rng = np.random.default_rng(8)
    count = 330
    for offset in range(17):
        store = moderate(dtype, count + offset, rng)
        g = store[offset:]
        for state_offset in (0, offset, 3):
            memory = state_for(dtype, count + state_offset + 5, rng)
            before = memory.copy()
            m = memory[state_offset:][:count]
            right = expected(m, numbers(g, dtype), MOMENTUM, 1.0, COIN)
            signal, keywords = as_signal(g, dtype)
            blocks, seen = run(signal, m, m, MOMENTUM, COIN, count=count, **keywords)
            assert blocks == right.blocks
            assert seen[2] == right.abs_sum
            before[state_offset:][:count] = right.next_state
            assert memory.tobytes() == before.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pieces_are_the_whole(dtype: str) -> None:
    rng = np.random.default_rng(9)
    count = 5 * CHUNK + 77
    raw, m = moderate(dtype, count, rng), state_for(dtype, count, rng)
    raw[2 * CHUNK + 9] = KINDS[dtype].infinity
    right = expected(m, numbers(raw, dtype), LION, 1.0, ZERO)
    layout = Layout(-(-count // 64), 2, True)
    for pieces in ((1, 1, 4), (2, 4), (3, 3)):
        buffer, state = layout.buffer(), m.copy()
        start = nonfinite = 0
        for chunks in pieces:
            piece = slice(start, start + chunks * CHUNK)
            seen = kernels.pack_linear(
                raw.view(dtype)[piece],
                state[piece],
                state[piece],
                buffer,
                layout.geometry(),
                start // 64,
                linear=LION,
                ties=ZERO,
                key=9,
                parity=1,
                ordinal=4,
            )
            nonfinite += seen[0]
            start += chunks * CHUNK
        assert [layout.read(buffer, g) for g in range(layout.blocks)] == right.blocks
        assert nonfinite == 1
        assert state.tobytes() == right.next_state.tobytes()


@pytest.mark.parametrize("linear", [MOMENTUM, LION])
def test_a_thousand_steps(linear: Factors) -> None:
    rng = np.random.default_rng(10)
    count = CHUNK + 203
    layout = Layout(-(-count // 64), 1)
    m = right = np.zeros(count, np.float32)
    states = [m.copy(), m.copy()]  # in turns, as for steps that may not count
    gradients = rng.standard_normal((7, count)).astype(np.float16)
    for step in range(1000):
        g = gradients[step % 7] * np.float16(step % 5 - 2)
        s, right = formula(right, g.astype(np.float32), linear, 2.0**-4)
        buffer = layout.buffer()
        target = states[step % 2]
        kernels.pack_linear(
            g,
            m,
            target,
            buffer,
            layout.geometry(),
            0,
            linear=linear,
            unscale=2.0**-4,
            ties=POSITIVE,
            key=0,
            parity=0,
            ordinal=0,
        )
        m = target
        assert m.tobytes() == right.tobytes(), step
        signs = np.packbits(s < 0, bitorder="little")
        assert (buffer[48:][: signs.size] == signs).all(), step
