"""What each rank of the overlap benchmark runs, for PyTorch.

`benchmarks.overlap` starts it as `python -m benchmarks.ranks.pytorch.overlap CONFIG EVENTS`. Rank 0
appends one JSON object a line to EVENTS: `measured` (raw times of one method), `done`.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import hvd_sign.torch as hvd
from benchmarks.methods.catalogue import Method, chosen
from benchmarks.ranks.events import Events
from benchmarks.ranks.program import Config
from benchmarks.ranks.pytorch import program


class Layer(torch.autograd.Function):
    """A layer whose gradient is there after a while, as if an accelerator had computed it."""

    @staticmethod
    def forward(ctx, x, weight, gradients, seconds):
        ctx.gradients, ctx.seconds = gradients, seconds
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        time.sleep(ctx.seconds)
        # Nobody else holds it, so autograd takes it over without a copy.
        return upstream, ctx.gradients.pop(), None, None


class Model:
    """Layers of equal size, with gradients that differ from rank to rank."""

    def __init__(self, config: Config) -> None:
        count = config["coordinates"] // config["layers"]
        torch.manual_seed(hvd.rank())
        self.weights = [torch.nn.Parameter(torch.zeros(count)) for _ in range(config["layers"])]
        self.signals = torch.randn(len(self.weights), count)
        self.gradients: list[torch.Tensor] = []
        self.renew()

    def renew(self) -> None:
        """Lays out the gradients of the next backward, in the buffers of the last one's."""
        for weight, signal in zip(self.weights, self.signals, strict=True):
            gradient, weight.grad = weight.grad, None
            self.gradients.append(signal.clone() if gradient is None else gradient.copy_(signal))

    def backward(self, seconds: float) -> None:
        """Makes the gradients, the last layer's first."""
        x = torch.zeros(1, requires_grad=True)
        for weight in self.weights:
            x = Layer.apply(x, weight, self.gradients, seconds / len(self.weights))
        x.sum().backward()


def slowest(values: list[float], name: str) -> list[float]:
    """Each value of the rank where it is the largest."""
    mine = torch.tensor(values, dtype=torch.float64).unsqueeze(0)
    return hvd.allgather(mine, name=name).max(0).values.tolist()


def measure(method: Method, config: Config) -> dict[str, list[float]]:
    """Raw seconds, call by call: of the exchange alone, of backward, and of what it left."""
    model = Model(config)
    arguments: dict[str, Any] = {"compression": getattr(hvd.Compression, method.compression)}
    if method.votes:
        arguments |= {"bucket_bytes": config["bucket_bytes"], **method.options}
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.weights, lr=1e-4),
        named_parameters=[(f"{method.name}.{i}", p) for i, p in enumerate(model.weights)],
        **arguments,
    )
    flat = torch.empty_like(model.signals)
    alone = [_alone(method, flat.copy_(model.signals)) for _ in range(_rounds(config))]
    alone = slowest(alone[config["warmup"] :], f"{method.name}.alone")
    seconds = sorted(alone)[len(alone) // 2]
    backward, step = [], []
    for _ in range(_rounds(config)):
        hvd.barrier()
        begin = time.perf_counter()
        model.backward(seconds)
        backward.append(time.perf_counter() - begin)
        optimizer.synchronize()
        step.append(time.perf_counter() - begin)
        with optimizer.skip_synchronize():
            optimizer.step()
        model.renew()
    first = config["warmup"]
    backward = slowest(backward[first:], f"{method.name}.backward")
    step = slowest(step[first:], f"{method.name}.step")
    exposed = [whole - part for whole, part in zip(step, backward, strict=True)]
    return {"alone": alone, "backward": backward, "exposed": exposed}


def _rounds(config: Config) -> int:
    rounds: int = config["warmup"] + config["iters"]
    return rounds


def _alone(method: Method, flat: torch.Tensor) -> float:
    """Seconds of one exchange of as many coordinates, with nothing beside it."""
    hvd.barrier()
    begin = time.perf_counter()
    if method.votes:
        hvd.allreduce_(flat, op=hvd.MajorityVote, name=f"{method.name}.alone", **method.options)
    else:
        small, context = getattr(hvd.Compression, method.compression).compress(flat)
        hvd.allreduce_(small, op=hvd.Average, name=f"{method.name}.alone")
        getattr(hvd.Compression, method.compression).decompress(small, context)
    return time.perf_counter() - begin


def measure_all(config: Config, events: Events) -> None:
    """Measures one method after another."""
    for method in chosen(config["methods"]):
        events.emit("measured", method=method.name, **measure(method, config))
    events.emit("done")


if __name__ == "__main__":
    program.main("benchmarks.ranks.pytorch.overlap", __doc__, measure_all)
