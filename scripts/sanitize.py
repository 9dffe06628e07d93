"""Runs the C++ tests, most of them under the sanitizers of the compiler.

    python -m scripts.sanitize [kernels] [engine] [allocations]

- kernels: hvd_sign/native/tests/compare.cpp under the address and undefined-behaviour sanitizers;
- engine: hvd_sign/native/tests/race.cpp under the thread sanitizer, on 2 and on 4 ranks. MPI itself
  is not compiled for the sanitizer: what it does alone is suppressed (tests/tsan.supp);
- allocations: hvd_sign/native/tests/allocations.cpp, on 2 ranks, without a sanitizer: the engine's
  threads allocate nothing after the first votes.

Builds in build/sanitize. Exit status 1 where a sanitizer finds something or a result is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
NATIVE = REPO / "hvd_sign" / "native"
BUILD = REPO / "build" / "sanitize"
# Files called module, arrays.cpp and nanobind.cpp are Python's.
KERNELS = [
    NATIVE / f"{name}.cpp"
    for name in (
        *("apply", "avx2", "avx512", "dispatch", "message", "neon", "pack", "scalar", "tally"),
    )
]
ENGINE = [
    NATIVE / "engine" / f"{name}.cpp"
    for name in ("engine", "mpi_wire", "plan", "relay", "stream", "thread_pool")
]
FLAGS = ["-std=c++17", "-g", "-Wall", "-Wextra", "-fno-strict-aliasing", "-ffp-contract=off"]


def build(compiler: str, program: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Compiles sources and one of the test programs; returns the program's path.

    Raises:
        subprocess.CalledProcessError: the compiler failed; it has said why.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / program
    command = [compiler, *FLAGS, *flags, *map(str, sources)]
    command += [str(NATIVE / "tests" / f"{program}.cpp"), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def kernels() -> bool:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = build(os.environ.get("CXX", "g++"), "compare", KERNELS, flags)
    return subprocess.run([program], check=False).returncode == 0


def engine() -> bool:
    # The sanitizer's memory map does not bear the addresses that newer kernels draw at random.
    steady = [shutil.which("setarch") or "setarch", "-R"]
    options = f"suppressions={NATIVE / 'tests' / 'tsan.supp'} exitcode=66 history_size=7"
    return on_ranks("race", ["-O1", "-fsanitize=thread"], (2, 4), steady, TSAN_OPTIONS=options)


def allocations() -> bool:
    return on_ranks("allocations", ["-O2"], (2,))


def on_ranks(
    program: str, flags: Sequence[str], sizes: Sequence[int], before: Sequence[str] = (), **env: str
) -> bool:
    """Builds a test program of the engine; tells whether it succeeds on all numbers of ranks."""
    compiler, launcher = shutil.which("mpicxx"), shutil.which("mpirun")
    if compiler is None or launcher is None:
        print(f"{program}: left out: no mpicxx and mpirun on PATH")
        return True
    # MPI's headers cast functions in a way that -Wextra dislikes.
    built = build(compiler, program, [*KERNELS, *ENGINE], [*flags, "-Wno-cast-function-type"])
    env = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        **env,
    }
    for ranks in sizes:
        command = [*before, launcher, "-np", str(ranks), str(built)]
        if subprocess.run(command, env=env, timeout=300, check=False).returncode != 0:
            return False
    return True


PARTS = {"kernels": kernels, "engine": engine, "allocations": allocations}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.sanitize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="part", help="kernels, engine, allocations; none: all"
    )
    parts = parser.parse_args(arguments).parts or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"expected {' or '.join(PARTS)}, got {unknown[0]!r}")
    failed = []
    for part in parts:
        print(f"-- {part}", flush=True)
        if not PARTS[part]():
            failed.append(part)
    print(f"sanitizers: {'failed: ' + ', '.join(failed) if failed else 'nothing found'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
