"""A model and its optimizer under each method of exchanging gradients, for PyTorch."""

from __future__ import annotations

import time

import torch
from torch.nn.parallel import DistributedDataParallel

import hvd_sign.torch as hvd
from benchmarks.methods.catalogue import Method
from benchmarks.ranks.pytorch import hooks
from benchmarks.training.tasks import Optimizer

HVD_GROUPS = ("ours", "horovod")  # served by hvd.DistributedOptimizer
DDP_GROUPS = ("ddp", "baselines")
SIGNS = {"signum": hvd.Signum, "lion": hvd.Lion}


class Exchange:
    """One method's way from a loss to the next weights.

    Batch norm's running statistics stay each worker's own under every method, as under Horovod.

    Args:
        method: of exchanging gradients.
        model: with the same weights on all ranks.
        optimizer: what the exchanged gradients are given to.
        scaler: of the loss, enabled or not.
        seed: of what is random in the method; the same on all ranks.

    Attributes:
        model: to be called in the place of the given one.
        optimizer: whose learning rate counts.
    """

    def __init__(
        self,
        method: Method,
        model: torch.nn.Module,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        seed: int,
    ) -> None:
        self.model = model
        self.optimizer = _plain(model, optimizer)
        # Adasum's optimizer does all in its step.
        self._synchronizes = method.group in HVD_GROUPS and method.op != "Adasum"
        self._alone = method.group == "alone"
        self._scaler = scaler
        if method.group in HVD_GROUPS:
            self.optimizer = self._distributed(method, seed)
        elif method.group in DDP_GROUPS:
            self.model = DistributedDataParallel(model, broadcast_buffers=False)
            hooks.register(self.model, method, seed)

    def step(self, loss: torch.Tensor) -> float | None:
        """Takes a step. Returns the seconds spent waiting for the exchange; None: not to be told.

        On a GPU this is the host's wait, which includes the rest of backward.
        """
        self._scaler.scale(loss).backward()
        waited = 0.0 if self._alone else None
        if self._synchronizes:
            begin = time.perf_counter()
            self.optimizer.synchronize()
            waited = time.perf_counter() - begin
            with self.optimizer.skip_synchronize():
                self._scaler.step(self.optimizer)
        else:
            self._scaler.step(self.optimizer)
        self._scaler.update()
        return waited

    def _distributed(self, method: Method, seed: int) -> torch.optim.Optimizer:
        named = [(f"{method.name}.{n}", p) for n, p in self.model.named_parameters()]
        compression = getattr(hvd.Compression, method.compression)
        if method.group == "ours":
            options = dict(method.options, seed=seed)
            if self._scaler.is_enabled():
                options["grad_scaler"] = self._scaler
        else:
            options = {"op": getattr(hvd, method.op)}
        return hvd.DistributedOptimizer(
            self.optimizer, named_parameters=named, compression=compression, **options
        )


def _plain(model: torch.nn.Module, wanted: Optimizer) -> torch.optim.Optimizer:
    parameters, rate = model.parameters(), wanted.learning_rate
    if wanted.kind == "adam":
        return torch.optim.Adam(parameters, lr=rate)
    if wanted.kind == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=wanted.momentum)
    return SIGNS[wanted.kind](parameters, lr=rate, weight_decay=wanted.weight_decay)
