"""What each rank of the allreduce benchmark runs, for PyTorch.

`benchmarks.allreduce` starts it as `python -m benchmarks.ranks.pytorch.allreduce CONFIG EVENTS`.
Rank 0 appends one JSON object a line to EVENTS: `memory` (bytes a second that one rank copies while
all do, before each size), `progress`, `measured` (raw times of one method and size), `done`.

The methods take turns, call by call, each round beginning with another one, so that a machine that
becomes busier or quieter is the same for all. Hooks of DistributedDataParallel keep buffers as
large as the gradients; where those of all hooks would be more than 256 MiB a rank, they are
measured one after another, when the others have been.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch

import hvd_sign.torch as hvd
from benchmarks.methods.catalogue import Method, chosen
from benchmarks.ranks.events import Events
from benchmarks.ranks.memory import Copier
from benchmarks.ranks.program import Config
from benchmarks.ranks.pytorch import distributed, program
from benchmarks.ranks.pytorch.contests import Hook, contest_of

HELD = 256 << 20  # bytes of DDP's buffers in a rank
COPY_ROUNDS = 4


def memory_bandwidth(copier: Copier) -> float:
    """Bytes read and written per second by the slowest rank while all copy; the best round's."""
    rounds = []
    for _ in range(COPY_ROUNDS):
        hvd.barrier()
        rounds.append(copier.seconds())
    every = torch.tensor(rounds, dtype=torch.float64)
    slowest = hvd.allreduce(every, op=hvd.Max, name="memory")
    return copier.bytes / float(slowest.min())


def together(methods: Sequence[Method], size: int) -> list[list[Method]]:
    """The methods that take turns with each other, group by group; `size` in bytes."""
    hooks = [method for method in methods if contest_of(method) is Hook]
    if 2 * size * len(hooks) <= HELD:
        return [list(methods)]
    others = [method for method in methods if method not in hooks]
    return [group for group in (others, *([hook] for hook in hooks)) if group]


def give_back_memory() -> None:
    """Frees what a group of methods has left: models and their reducers, which hold each other.

    glibc keeps freed blocks of up to 32 MiB, as DDP's buckets are; it is told to return them.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def measure_group(
    group: Sequence[Method],
    tensors: tuple[torch.Tensor, torch.Tensor],
    config: Config,
    events: Events,
    count: Callable[[], None],
) -> None:
    """Measures methods in turns on one size; `count` is called after each call of one."""
    contests = [contest_of(method)(method, *tensors, config) for method in group]
    wrong: dict[str, int | None] = {}
    for repeat in range(config["warmup"] + config["iters"]):
        if repeat == config["warmup"]:
            for contest in contests:
                contest.forget()
        first = repeat % len(contests)
        for contest in contests[first:] + contests[:first]:
            contest.call()
            if repeat == 0:
                wrong[contest.name] = contest.wrong() if config["check"] else None
            count()
    for contest in contests:
        events.emit(
            "measured",
            size=4 * len(tensors[0]),
            method=contest.method.name,
            wrong=wrong[contest.name],
            **contest.figures(),
        )


def measure(config: Config, events: Events) -> None:
    """Measures every method at every size."""
    methods = chosen(config["methods"])
    copier = Copier()
    beside = any(method.group in ("distributed", "ddp", "baselines") for method in methods)
    if beside:
        distributed.start(config["interface"])
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        events.progress("calls", done)

    for size in config["sizes"]:
        events.emit("memory", bytes_per_second=memory_bandwidth(copier))
        rng = np.random.default_rng((config["seed"], hvd.rank(), size))
        signal = torch.from_numpy(rng.standard_normal(size // 4, dtype=np.float32))
        tensor = torch.empty_like(signal)
        for group in together(methods, size):
            measure_group(group, (signal, tensor), config, events, count)
            give_back_memory()
    if beside:
        distributed.stop()
    events.emit("done", calls=done)


if __name__ == "__main__":
    program.main("benchmarks.ranks.pytorch.allreduce", __doc__, measure)
