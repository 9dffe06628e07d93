"""How every benchmark's program for PyTorch begins and ends on a rank."""

from __future__ import annotations

import torch

import hvd_sign.torch as hvd
from benchmarks.ranks import program
from benchmarks.ranks.program import Measure


def main(module: str, doc: str | None, measure: Measure) -> None:
    """Reads `MODULE CONFIG EVENTS` from the command line and measures, on one thread."""
    torch.set_num_threads(1)
    program.main(module, doc, hvd, measure)
