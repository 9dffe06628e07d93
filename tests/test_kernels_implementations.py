"""Every implementation against the reference in Python and against the scalar one."""

from __future__ import annotations

import platform
from pathlib import Path
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
    pack,
    patterns,
)

from hvd_sign.core import kernels

FAST = [name for name in kernels.implementations() if name != "scalar"]
OFFSETS = range(17)  # every place in a vector of 32 bytes and one more, for each type


def test_what_this_machine_can_run_is_there() -> None:
    names = kernels.implementations()
    assert names[-1] == "scalar"
    if platform.machine() == "x86_64" and Path("/proc/cpuinfo").exists():
        flags = Path("/proc/cpuinfo").read_text()
        assert ("avx2" in names) == (" avx2" in flags)
        sets = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
        assert ("avx512" in names) == all(f" {one}" in flags for one in sets)


def packed(raw: np.ndarray, dtype: str, ties: int, layout: Layout, **more: Any) -> Any:
    signal, keywords = as_signal(raw, dtype)
    buffer = layout.buffer()
    seen = kernels.pack(
        signal,
        buffer,
        layout.geometry(),
        0,
        ties=ties,
        key=9,
        parity=1,
        ordinal=4,
        want_abs=True,
        **more,
        **keywords,
    )
    return buffer, seen


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_pack_against_the_reference(dtype: str, ties: int) -> None:
    rng = np.random.default_rng(2)
    kind = KINDS[dtype]
    for count in (0, 1, 63, 64, 65, 127, 300, 4095, 4096, 4097, 8192, 9000):
        for zeros in (0.0, 0.1, 1.0):
            raw = patterns(dtype, count, rng, zeros=zeros)
            if count >= 4096:
                raw[64:192] = 0
                raw[4096:] = kind.infinity | 1 if zeros == 0.1 else raw[4096:]
            blocks, nonfinite, finite = pack(raw.tolist(), kind, ties, key=9, parity=1, ordinal=4)
            layout = Layout(len(blocks), 3, ties == ZERO)
            buffer, seen = packed(raw, dtype, ties, layout)
            assert seen[:2] == (nonfinite, finite)
            for g, block in enumerate(blocks):
                expected = block if ties == ZERO else block._replace(nonzero=0)
                assert layout.read(buffer, g) == expected, (count, zeros, g)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", DTYPES)
def test_abs_sum_is_exact(dtype: str) -> None:
    rng = np.random.default_rng(3)
    kind = KINDS[dtype]
    for count in (1, 64, 100, 300, 4096, 5000):
        raw = patterns(dtype, count, rng)
        # Not all exponents: the sums of huge numbers would be infinite.
        raw &= kind.bits(kind.sign | kind.infinity // 2 | (kind.infinity & -kind.infinity) - 1)
        _, seen = packed(raw, dtype, COIN, Layout(-(-count // 64), 1))
        assert seen[2] == canonical_sum(raw, dtype)


def both(name: str, call: Any) -> tuple[Any, Any]:
    """What `call` returns under an implementation and under the scalar one."""
    before = kernels.implementation()
    try:
        kernels.set_implementation(name)
        fast = call()
        kernels.set_implementation("scalar")
        return fast, call()
    finally:
        kernels.set_implementation(before)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_length_at_every_offset(name: str, dtype: str) -> None:
    rng = np.random.default_rng(4)
    store = patterns(dtype, 300 + max(OFFSETS), rng)
    layouts = [Layout(5, 2, nonzero) for nonzero in (False, True)]
    verdicts = [verdict(layout, rng) for layout in layouts]
    keywords = as_signal(store, dtype)[1]
    geometries = [layout.geometry() for layout in layouts]

    def run(offset: int, count: int, nonzero: int) -> list[bytes]:
        layout, geometry = layouts[nonzero], geometries[nonzero]
        view = as_signal(store[offset : offset + count], dtype)[0]
        buffer = layout.buffer()
        seen = kernels.pack(
            view,
            buffer,
            geometry,
            0,
            ties=ZERO if nonzero else COIN,
            key=9,
            parity=0,
            ordinal=4,
            want_abs=True,
            **keywords,
        )
        out, p = store.copy(), store.copy()
        for array, function, factor in (
            (out, kernels.write_verdict, {"scale": 0.3}),
            (p, kernels.apply_verdict, {"lr": 0.3}),
        ):
            target = as_signal(array[offset : offset + count], dtype)[0]
            function(target, verdicts[nonzero], geometry, 0, **factor, **keywords)
            assert (array[:offset] == store[:offset]).all()
            assert (array[offset + count :] == store[offset + count :]).all()
        return [buffer.tobytes(), repr(seen).encode(), out.tobytes(), p.tobytes()]

    for nonzero in (0, 1):
        for count in range(301):
            for offset in OFFSETS if nonzero == 0 or count % 7 == 0 else (count % 17,):
                fast, slow = both(name, lambda o=offset, c=count, z=nonzero: run(o, c, z))
                assert fast == slow, (offset, count, nonzero)


def verdict(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """A random verdict, some of its blocks dead."""
    buffer = layout.buffer()
    for g in range(layout.blocks):
        signs, nonzero = (int(x) for x in rng.integers(0, 1 << 64, 2, np.uint64))
        if g % 5 != 3:
            layout.write(buffer, g, Block(signs, True, nonzero))
    return buffer


def votes_of(layout: Layout, buffer: np.ndarray, count: int) -> np.ndarray:
    """The verdict as -1, 0 and +1."""
    votes = []
    for g in range(-(-count // 64)):
        block = layout.read(buffer, g)
        for i in range(64):
            there = block.active and (not layout.nonzero or block.nonzero >> i & 1)
            votes.append((-1 if block.signs >> i & 1 else 1) if there else 0)
    return np.array(votes[:count])


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("nonzero", [False, True])
def test_write_verdict_against_numpy(nonzero: bool) -> None:
    rng = np.random.default_rng(6)
    layout = Layout(700, 3, nonzero)
    buffer = verdict(layout, rng)
    for count in (1, 64, 4096, 4097, 700 * 64 - 3):
        votes = votes_of(layout, buffer, count)
        for dtype in (np.float16, np.float32, np.float64):
            for scale in (1.0, 0.1, 1e-6, -2.0):
                out = np.full(count, 7, dtype)
                kernels.write_verdict(out, buffer, layout.geometry(), 0, scale=scale)
                expected = np.where(votes == 0, dtype(0), votes * dtype(scale)).astype(dtype)
                assert out.tobytes() == (expected + dtype(0)).tobytes()
        out = np.full(count, 7, np.uint16)
        kernels.write_verdict(out, buffer, layout.geometry(), 0, scale=1.5, bfloat16=True)
        assert (out == np.choose(votes + 1, [0xBFC0, 0, 0x3FC0])).all()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("scale", [1e39, -1e39, float("inf"), 70000.0])
def test_no_scale_writes_an_infinity(scale: float) -> None:
    layout = Layout(3, 1)
    buffer = verdict(layout, np.random.default_rng(9))
    votes = votes_of(layout, buffer, 150)
    for dtype, most in ((np.float16, 65504.0), (np.float32, 2.0**128 - 2.0**104)):
        out = np.full(150, 7, dtype)
        kernels.write_verdict(out, buffer, layout.geometry(), 0, scale=scale)
        assert (out == votes * np.clip(scale, -most, most)).all()
    out = np.full(150, 7, np.uint16)
    kernels.write_verdict(out, buffer, layout.geometry(), 0, scale=1e39, bfloat16=True)
    assert (out == np.choose(votes + 1, [0xFF7F, 0, 0x7F7F])).all()


@pytest.mark.usefixtures("implementation")
def test_write_verdict_of_more_than_the_cache() -> None:
    count = 5 * 4096 * 4096 // 8 + 17  # 40 MiB of float32: written past the cache
    layout = Layout(-(-count // 64), 1)
    buffer = np.random.default_rng(7).integers(0, 256, layout.message, np.uint8)
    buffer[layout.active :] = 255
    bits = np.unpackbits(buffer[48 : layout.active], count=count, bitorder="little")
    for start in (0, 1):  # aligned as malloc does, and not at all
        out = np.full(count + 2, 5, np.float32)
        target = out[start : start + count]
        kernels.write_verdict(target, buffer, layout.geometry(), 0, scale=3.0)
        assert ((target == -3.0) == bits).all()
        assert ((target == 3.0) != bits).all()
        assert (out[:start] == 5).all()
        assert (out[start + count :] == 5).all()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("nonzero", [False, True])
def test_apply_verdict_against_numpy(nonzero: bool) -> None:
    rng = np.random.default_rng(8)
    count = 65536
    layout = Layout(count // 64, 3, nonzero)
    buffer = verdict(layout, rng)
    votes = votes_of(layout, buffer, count)
    for dtype in (np.float32, np.float64):
        p = rng.standard_normal(count).astype(dtype)
        expected = np.where(votes == 0, p, p - dtype(0.1) * votes.astype(dtype))
        kernels.apply_verdict(p, buffer, layout.geometry(), 0, lr=0.1)
        assert p.tobytes() == expected.tobytes()
    # All 65536 numbers of the 16-bit types; NaN stays NaN, and with V = 0 its very bits.
    every = np.arange(count, dtype=np.uint16)
    for lr in (1.0, 1e-3, 3.7e-8, 60000.0):
        p = every.copy()
        kernels.apply_verdict(p.view(np.float16), buffer, layout.geometry(), 0, lr=lr)
        wide = every.view(np.float16).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            moved = (wide - np.float32(lr) * votes.astype(np.float32)).astype(np.float16)
        same_numbers(p, np.where(votes == 0, every, moved.view(np.uint16)), 0x7C00, votes)
        p = every.copy()
        kernels.apply_verdict(p, buffer, layout.geometry(), 0, lr=lr, bfloat16=True)
        wide = (every.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            bits = (wide - np.float32(lr) * votes.astype(np.float32)).view(np.uint32)
        moved = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
        moved[bits & 0x7FFF_FFFF > 0x7F80_0000] = 0x7FC0
        same_numbers(p, np.where(votes == 0, every, moved), 0x7F80, votes)


def same_numbers(got: np.ndarray, expected: np.ndarray, infinity: int, votes: np.ndarray) -> None:
    """Equal bits; of a NaN that was computed with, only that it is one."""
    nan = ((expected & 0x7FFF) > infinity) & (votes != 0)
    assert (((got & 0x7FFF) > infinity) == ((expected & 0x7FFF) > infinity)).all()
    assert (got == expected)[~nan].all()


@pytest.mark.parametrize("name", FAST)
def test_computed_nan_payloads_are_equal_too(name: str) -> None:
    layout = Layout(1024, 1)
    buffer = verdict(layout, np.random.default_rng(9))
    for keywords in ({}, {"bfloat16": True}):

        def run(keywords: dict[str, bool] = keywords) -> bytes:
            p = np.arange(65536, dtype=np.uint16)
            target = p if keywords else p.view(np.float16)
            kernels.apply_verdict(target, buffer, layout.geometry(), 0, lr=0.5, **keywords)
            return p.tobytes()

        fast, slow = both(name, run)
        assert fast == slow
