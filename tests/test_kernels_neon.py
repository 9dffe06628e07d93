"""The ARM kernels, on an emulated ARM where a cross compiler and qemu are at hand."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts import sanitize

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def test_neon_equals_scalar_bit_for_bit(tmp_path: Path) -> None:
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on PATH")
    program = tmp_path / "compare"
    sources = [*sanitize.KERNELS, sanitize.NATIVE / "tests" / "compare.cpp"]
    flags = [*sanitize.FLAGS, "-O2", "-Werror", "-static"]
    subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(program)], check=True)
    run = [EMULATOR, str(program), "neon"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # The messages of the scalar kernels, and so of all, are those of an x86 machine.
    assert "digest 9d391adae1cb155f" in done.stdout
    calls = re.search(r"(\d+) calls, neon: 0 differ from scalar", done.stdout)
    assert calls is not None
    assert int(calls[1]) > 20_000
