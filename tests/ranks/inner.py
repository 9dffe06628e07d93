"""Run pytest on every rank: `mpirun -np N python inner.py FOLDER [pytest arguments]`.

Rank 0 keeps the terminal; the others' output goes to FOLDER/console.<rank>.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from agreement import Agreement
from mpi4py import MPI


def main() -> int:
    folder, *arguments = sys.argv[1:]
    rank = MPI.COMM_WORLD.Get_rank()
    if rank:
        console = os.open(Path(folder) / f"console.{rank}", os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(console, 1)
        os.dup2(console, 2)
    options = ["-q", "-rN", "-p", "no:cacheprovider", "--capture=sys", "--tb=short", "--color=no"]
    return int(
        pytest.main([*options, "--maxfail=20", *arguments], plugins=[Agreement(Path(folder))])
    )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    MPI.COMM_WORLD.Barrier()
    sys.exit(code)
