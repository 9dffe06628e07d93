"""The kernels among Python's other things: frameworks' arrays, threads, the environment, builds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_reference import COIN, POSITIVE, Layout

from hvd_sign.core import kernels

LAYOUT = Layout(4, 2)
GEOMETRY = LAYOUT.geometry()


def pack(signal: Any, buffer: np.ndarray, **more: Any) -> Any:
    return kernels.pack(
        signal, buffer, GEOMETRY, 0, ties=POSITIVE, key=1, parity=0, ordinal=0, **more
    )


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch", minversion="2.1")
    x = torch.randn(200)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        tensor = x.to(dtype)
        buffer = LAYOUT.buffer()
        pack(tensor, buffer)
        negative = (tensor.float() < 0).numpy()
        bits = np.packbits(negative, bitorder="little")
        received = np.concatenate([buffer[48:64], buffer[72 + 48 : 72 + 64]])[:25]
        assert (received == bits).all()
        out = torch.zeros_like(tensor)
        buffer[[64, 72 + 64]] = 3
        kernels.write_verdict(out, buffer, GEOMETRY, 0)
        assert ((out < 0).numpy() == negative).all()
        assert (out.abs() == 1).all()
    with pytest.raises(ValueError, match="gaps or another order"):
        pack(torch.ones(4, 4).t(), LAYOUT.buffer())
    with pytest.raises(TypeError, match="got int64"):
        pack(torch.ones(4, dtype=torch.int64), LAYOUT.buffer())


def test_bfloat16_of_numpy() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([1, -2, 0, -3], np.float32).astype(ml_dtypes.bfloat16)
    buffer = LAYOUT.buffer()
    assert pack(x, buffer, want_abs=True) == (0, 4, 6.0)
    assert buffer[48] == 0b1010
    kernels.write_verdict(x, buffer, GEOMETRY, 0)
    assert x.tolist() == [1, -1, 1, -1]
    kernels.apply_verdict(x, buffer, GEOMETRY, 0, lr=0.1)
    assert (x.astype(np.float32) > 0).tolist() == [True, False, True, False]
    with pytest.raises(TypeError, match="pack: signal: expected"):
        pack(x.astype(ml_dtypes.float8_e5m2), buffer)


def ticks_during(call: Callable[[], Any]) -> int:
    """How often this thread runs while another is inside `call`."""
    inside, done = threading.Event(), threading.Event()

    def run() -> None:
        inside.set()
        call()
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    inside.wait()
    ticks = 0
    while not done.is_set():
        time.sleep(1e-4)
        ticks += 1
    thread.join()
    return ticks


def test_the_gil_is_released() -> None:
    count = 1 << 24
    x = np.ones(count, np.float32)
    layout = Layout(count // 64, 1)
    geometry, buffer, other = layout.geometry(), layout.buffer(), layout.buffer()
    ballots = np.tile(buffer, 9)
    one = np.zeros(1, np.int64)
    half = (0.5, 0.5, 0.5, 0.5)
    before = kernels.implementation()
    kernels.set_implementation("scalar")  # the slowest; each call is one, without Python within
    calls: list[Callable[[], Any]] = [
        lambda: kernels.pack(x, buffer, geometry, 0, ties=COIN, key=0, parity=0, ordinal=0),
        lambda: kernels.pack_linear(
            None, x, x, buffer, geometry, 0, linear=half, ties=COIN, key=0, parity=0, ordinal=0
        ),
        lambda: kernels.write_verdict(x, buffer, geometry, 0),
        lambda: kernels.apply_verdict(x, buffer, geometry, 0, lr=0.1),
        lambda: kernels.tally(
            ballots,
            geometry,
            other,
            shard=0,
            ties=COIN,
            key=0,
            first_blocks=one,
            ordinals=one.view(np.uint64),
        ),
    ]
    try:
        for number, call in enumerate(calls):
            # A loaded machine may not run this thread for a while: any of a few tries will do.
            assert any(ticks_during(call) > 8 for _ in range(5)), number
    finally:
        kernels.set_implementation(before)


def in_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_environment_forces_an_implementation() -> None:
    code = "from hvd_sign.core import kernels; print(kernels.implementation())"
    for name in kernels.implementations():
        done = in_python(code, HVD_SIGN_KERNELS=name)
        assert done.stdout.split() == [name], done.stderr
    done = in_python(code, HVD_SIGN_KERNELS="")
    assert done.stdout.split() == [kernels.implementations()[0]], done.stderr
    done = in_python(code, HVD_SIGN_KERNELS="abacus")
    usable = ", ".join(kernels.implementations())
    assert done.returncode != 0
    assert done.stderr.endswith(
        "ImportError: HVD_SIGN_KERNELS: set_implementation: name: expected one that this machine "
        f"can run ({usable}), got 'abacus'\n"
    )


def test_a_stale_or_missing_build_is_told() -> None:
    stale = (
        "import sys, types; m = types.ModuleType('hvd_sign._kernels'); m.__version__ = '0.0.1';"
        "m.__file__ = 'old.so'; sys.modules['hvd_sign._kernels'] = m; import hvd_sign.core.kernels"
    )
    error = in_python(stale).stderr
    assert "the compiled kernels old.so are stale: expected version " in error
    assert "got 0.0.1: build them again with `pip install .`" in error
    missing = "import sys; sys.modules['hvd_sign._kernels'] = None; import hvd_sign.core.kernels"
    error = in_python(missing).stderr
    assert "ImportError: hvd_sign: the compiled kernels cannot be loaded (" in error
    assert "build them with `pip install .`" in error
