"""What each rank of the allreduce benchmark runs, for PyTorch.

`benchmarks.allreduce` starts it as `python -m benchmarks.allreduce_torch CONFIG EVENTS`. Rank 0
appends one JSON object a line to EVENTS: `progress`, `measured` (raw times of one method and size),
`done`.

The methods take turns, call by call, each round beginning with another one, so that a machine that
becomes busier or quieter is the same for all.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

import hvd_sign.torch as hvd
from benchmarks import rank_torch
from benchmarks.events import Events, bytes_sent
from benchmarks.methods import Method, chosen
from benchmarks.rank_torch import Config

CHECKED = 1 << 16  # coordinates that are compared
TOLERANCE = {"none": 1e-5, "fp16": 1e-2}  # rounding of a mean of values near 1


class Contest:
    """One method on tensors of one size.

    Args:
        method: what to measure.
        signal: this rank's fp32 input; equal for all methods.
        interface: whose counter shows our traffic.
    """

    def __init__(self, method: Method, signal: torch.Tensor, interface: str | None) -> None:
        self.method, self.signal, self.interface = method, signal, interface
        self.name = f"{method.name}.{signal.numel()}"
        self.tensor = torch.empty_like(signal)
        self.seconds: list[float] = []
        self.payload = self.wire = 0

    def call(self) -> None:
        """One call, measured from a barrier on; the input is restored before it."""
        self.tensor.copy_(self.signal)
        payload, sent = hvd.vote_stats().payload_bytes, bytes_sent(self.interface)
        hvd.barrier()
        begin = time.perf_counter()
        self._exchange()
        self.seconds.append(time.perf_counter() - begin)
        self.payload += hvd.vote_stats().payload_bytes - payload
        self.wire += bytes_sent(self.interface) - sent

    def wrong(self) -> int:
        """How many of the last result's coordinates, of a sample over all of it, are wrong.

        The sample is 65,536 coordinates at most, gathered from all ranks by Horovod.
        """
        rows = np.linspace(0, self.signal.numel() - 1, min(CHECKED, self.signal.numel()))
        rows = torch.from_numpy(rows.astype(np.int64))
        every = hvd.allgather(self.signal[rows].unsqueeze(0), name=f"{self.name}.sample")
        got = self.tensor[rows].double()
        if not self.method.votes:
            error = (got - every.double().mean(0)).abs()
            return int((error > TOLERANCE[self.method.compression]).sum())
        margin = every.sign().sum(0)  # a tie may go either way
        right = torch.where(margin == 0, got.abs() == 1, got == margin.sign())
        return int((~right).sum())

    def figures(self) -> dict[str, Any]:
        """Raw figures: seconds of the slowest rank, call by call; bytes a call, mean of ranks."""
        calls = len(self.seconds)
        mine = [*self.seconds, self.payload / calls, self.wire / calls]
        every = hvd.allgather(
            torch.tensor(mine, dtype=torch.float64).unsqueeze(0), name=f"{self.name}.figures"
        )
        payload, wire = every[:, calls:].mean(0).tolist()
        if self.method.payload is not None:
            payload = self.method.payload(hvd.size(), self.signal.numel())
        seconds = every[:, :calls].max(0).values.tolist()
        return {"seconds": seconds, "payload_bytes": payload, "wire_bytes": wire}

    def forget(self) -> None:
        """Drops what was measured so far: the warm-up."""
        self.seconds.clear()
        self.payload = self.wire = 0

    def _exchange(self) -> None:
        if self.method.votes:
            hvd.allreduce_(self.tensor, op=hvd.MajorityVote, name=self.name)
            return
        # As Horovod's optimizer does it: compress, reduce in place, decompress.
        compression = getattr(hvd.Compression, self.method.compression)
        small, context = compression.compress(self.tensor)
        hvd.allreduce_(small, op=hvd.Average, name=self.name)
        self.tensor = compression.decompress(small, context)


def measure(config: Config, events: Events) -> None:
    """Measures every method at every size."""
    done = 0
    for size in config["sizes"]:
        rng = np.random.default_rng((config["seed"], hvd.rank(), size))
        signal = torch.from_numpy(rng.standard_normal(size // 4, dtype=np.float32))
        methods = chosen(config["methods"])
        contests = [Contest(method, signal, config["interface"]) for method in methods]
        wrong = {}
        for repeat in range(config["warmup"] + config["iters"]):
            if repeat == config["warmup"]:
                for contest in contests:
                    contest.forget()
            first = repeat % len(contests)
            for contest in contests[first:] + contests[:first]:
                contest.call()
                if repeat == 0:
                    wrong[contest.name] = contest.wrong()
                done += 1
                events.progress("calls", done)
        for contest in contests:
            events.emit(
                "measured",
                size=size,
                method=contest.method.name,
                wrong=wrong[contest.name],
                **contest.figures(),
            )
    events.emit("done")


if __name__ == "__main__":
    rank_torch.main("benchmarks.allreduce_torch", __doc__, measure)
