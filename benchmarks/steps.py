"""Times what comes after an exchange: optimizers' steps, in as many processes as there are ranks.

    mpirun --oversubscribe -np 4 python -m benchmarks.steps

All processes step at once, each on one thread, one fp32 tensor of 25.6 million weights: PyTorch's
optimizers on a gradient, hvd_sign's on a verdict. A step's time is the slowest process's, from a
barrier on; rank 0 prints medians, and the least and the most.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

import hvd_sign.torch as hvd

OPTIMIZERS: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "SGD, momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "AdamW": lambda weights: torch.optim.AdamW(weights),
    "AdamW, fused": lambda weights: torch.optim.AdamW(weights, fused=True),
    "Signum, by vote": lambda weights: hvd.Signum(weights),
    "Lion, by vote": lambda weights: hvd.Lion(weights, weight_decay=0.1),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--coordinates", type=int, default=25_600_000, help="(%(default)s)")
    parser.add_argument("-n", "--iters", type=int, default=15, help="(%(default)s)")
    given = parser.parse_args(argv)
    for option in ("coordinates", "iters"):
        if getattr(given, option) < 1:
            parser.error(f"--{option}: expected 1 or more, got {getattr(given, option)}")
    return given


def measure(name: str, coordinates: int, iters: int) -> list[float]:
    """Seconds of each step, the slowest rank's; the first step, which makes states, is left out."""
    weights = torch.zeros(coordinates, requires_grad=True)
    weights.grad = torch.randn(coordinates).sign()
    optimizer = OPTIMIZERS[name]([weights])
    voted = isinstance(optimizer, hvd.Signum | hvd.Lion)
    seconds = []
    for _ in range(1 + iters):
        hvd.barrier()
        begin = time.perf_counter()
        if voted:
            with optimizer.on_verdicts([weights]):
                optimizer.step()
        else:
            optimizer.step()
        seconds.append(time.perf_counter() - begin)
    mine = torch.tensor(seconds[1:], dtype=torch.float64)
    return hvd.allreduce(mine, op=hvd.Max, name=name).tolist()


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints a line for each optimizer."""
    given = parse(argv)
    torch.set_num_threads(1)
    hvd.init()
    if hvd.rank() == 0:
        print(f"{given.coordinates:,} weights in each of {hvd.size()} processes, ms a step:")
    for name in OPTIMIZERS:
        seconds = [1e3 * one for one in measure(name, given.coordinates, given.iters)]
        if hvd.rank() == 0:
            middle = statistics.median(seconds)
            print(f"{name}: {middle:.4g} ({min(seconds):.4g} to {max(seconds):.4g})", flush=True)
    hvd.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
