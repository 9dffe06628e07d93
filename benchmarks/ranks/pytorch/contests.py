"""One exchange of given gradients by each kind of method, for PyTorch."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import hvd_sign.torch as hvd
from benchmarks.methods.catalogue import Method
from benchmarks.ranks.events import bytes_sent
from benchmarks.ranks.program import Config
from benchmarks.ranks.pytorch import checks, hooks
from benchmarks.training import shapes

# DDP lays out its buckets anew after the first step, and PowerSGD begins with the third.
FIRST_STEPS = 3


class Contest(ABC):
    """One method on gradients of one size.

    Args:
        method: what to measure.
        signal: float32[d], this rank's input; equal for all methods.
        tensor: float32[d], to work in; all methods share it.
        config: `interface` (whose counter shows our traffic) and `seed`.
    """

    def __init__(
        self, method: Method, signal: torch.Tensor, tensor: torch.Tensor, config: Config
    ) -> None:
        self.method, self.signal, self.tensor = method, signal, tensor
        self.interface, self.seed = config["interface"], config["seed"]
        self.name = f"{method.name}.{len(signal)}"
        self.shapes: list[shapes.Shape] = [tuple(signal.shape)]
        self.forget()

    @abstractmethod
    def exchange(self) -> None:
        """Exchanges what is in `tensor`; returns when the result is there."""

    def result(self) -> torch.Tensor:
        """What came of it, float32[d]."""
        return self.tensor

    def call(self) -> None:
        """One exchange, measured from a barrier on; the input is restored before it."""
        self.tensor.copy_(self.signal)
        payload, sent = hvd.vote_stats().payload_bytes, bytes_sent(self.interface)
        hvd.barrier()
        begin = time.perf_counter()
        self.exchange()
        self.seconds.append(time.perf_counter() - begin)
        self.payload += hvd.vote_stats().payload_bytes - payload
        self.wire += bytes_sent(self.interface) - sent

    def forget(self) -> None:
        """Drops what was measured so far: the warm-up."""
        self.seconds: list[float] = []
        self.payload = self.wire = 0

    def wrong(self) -> int | None:
        """How many coordinates of a sample of the last result are wrong; None: not known."""
        return checks.wrong(self.method, self.name, self.signal, self.result())

    def figures(self) -> dict[str, Any]:
        """Raw figures: seconds of the slowest rank, call by call; bytes a call, mean of ranks."""
        calls = len(self.seconds)
        mine = [*self.seconds, self.payload / calls, self.wire / calls]
        every = hvd.allgather(
            torch.tensor(mine, dtype=torch.float64).unsqueeze(0), name=f"{self.name}.figures"
        )
        payload, wire = every[:, calls:].mean(0).tolist()
        if self.method.payload is not None:
            payload = self.method.payload(hvd.size(), self.shapes)
        seconds = every[:, :calls].max(0).values.tolist()
        return {"seconds": seconds, "payload_bytes": payload, "wire_bytes": wire}


class Vote(Contest):
    """A vote of hvd_sign on one tensor."""

    def exchange(self) -> None:
        hvd.allreduce_(self.tensor, op=hvd.MajorityVote, name=self.name, **self.method.options)


class TensorFlowVote(Contest):
    """A vote of hvd_sign on one tensor of TensorFlow's, inside a tf.function.

    It goes by a binding of its own, whose ranks are the same ones, and makes a new tensor.
    """

    def __init__(self, method: Method, signal: torch.Tensor, *others: Any) -> None:
        super().__init__(method, signal, *others)
        # Only where it is asked for: TensorFlow, and Horovod for it, are not to stand beside
        # other measurements.
        from benchmarks.ranks.tf import vote

        self._vote = vote.Vote(self.name, signal.numpy())

    def exchange(self) -> None:
        self._vote.exchange()

    def result(self) -> torch.Tensor:
        return torch.from_numpy(self._vote.verdict())


class Horovod(Contest):
    """Horovod's allreduce of one tensor, as its optimizer does it."""

    def exchange(self) -> None:
        compression = getattr(hvd.Compression, self.method.compression)
        small, context = compression.compress(self.tensor)
        hvd.allreduce_(small, op=getattr(hvd, self.method.op), name=self.name)
        self._result = compression.decompress(small, context)

    def result(self) -> torch.Tensor:
        return self._result


class Distributed(Contest):
    """torch.distributed's allreduce of one tensor: by Gloo, or by NCCL in the GPU's memory."""

    def __init__(self, method: Method, signal: torch.Tensor, *others: Any) -> None:
        super().__init__(method, signal, *others)
        if method.name == "nccl":
            self.tensor = signal.to(f"cuda:{hvd.local_rank()}")

    def exchange(self) -> None:
        dist.all_reduce(self.tensor)
        self.tensor.div_(hvd.size())
        if self.tensor.is_cuda:
            torch.cuda.synchronize(self.tensor.device)

    def result(self) -> torch.Tensor:
        return self.tensor.cpu()


class Hook(Contest):
    """A communication hook of DistributedDataParallel, on gradients of ResNet-50's shapes.

    Backward computes nothing: it hands out the gradients. So the time is that of DDP and its hook,
    with DDP's copy of the gradients into its buckets, as in every training with it.
    """

    def __init__(self, method: Method, signal: torch.Tensor, *others: Any) -> None:
        super().__init__(method, signal, *others)
        self.shapes = shapes.of_size(len(signal))
        self.model = DistributedDataParallel(
            Given(self.tensor, self.shapes), init_sync=False, gradient_as_bucket_view=True
        )
        hooks.register(self.model, method, self.seed)
        for _ in range(FIRST_STEPS):
            self.call()
        self.forget()

    def exchange(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        self.model().backward()

    def result(self) -> torch.Tensor:
        return torch.cat([parameter.grad.flatten() for parameter in self.model.parameters()])


class Given(torch.nn.Module):
    """A model whose gradients are given; its weights are never looked at.

    Args:
        flat: the gradients one after another, float32[d].
        each: their shapes.
    """

    def __init__(self, flat: torch.Tensor, each: list[shapes.Shape]) -> None:
        super().__init__()
        self.flat = flat
        self.weights = torch.nn.ParameterList(torch.empty(shape) for shape in each)

    def forward(self) -> torch.Tensor:
        return HandOut.apply(self.flat, *self.weights)


class HandOut(torch.autograd.Function):
    """A function of the weights whose gradients are parts of a tensor, without a copy."""

    @staticmethod
    def forward(ctx, flat, *weights):
        ctx.flat, ctx.shapes = flat, [weight.shape for weight in weights]
        return torch.zeros(())

    @staticmethod
    def backward(ctx, upstream):
        parts = ctx.flat.split([math.prod(shape) for shape in ctx.shapes])
        pairs = zip(parts, ctx.shapes, strict=True)
        return None, *(part.view(shape) for part, shape in pairs)


def contest_of(method: Method) -> type[Contest]:
    """What exchanges tensors by a method."""
    return TensorFlowVote if method.framework == "tensorflow" else CONTESTS[method.group]


CONTESTS: dict[str, type[Contest]] = {
    "ours": Vote,
    "horovod": Horovod,
    "distributed": Distributed,
    "ddp": Hook,
    "baselines": Hook,
}
