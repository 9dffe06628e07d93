"""One method's training on one rank, for PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import hvd_sign.torch as hvd
from benchmarks.methods.catalogue import Method
from benchmarks.ranks.events import Events
from benchmarks.ranks.program import Config
from benchmarks.ranks.pytorch.exchange import Exchange
from benchmarks.ranks.pytorch.models import build
from benchmarks.ranks.pytorch.samples import Samples, loss_of, right_of
from benchmarks.training.shapes import Shape
from benchmarks.training.trial import Trial

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchTrial(Trial):
    """One method's model and optimizer.

    Args:
        method: of exchanging gradients.
        config: of the benchmark.
        samples: of training and of testing.
        device: where the model is.
        events: gets `progress`, `epoch` and `replicas`.
    """

    def __init__(
        self,
        method: Method,
        config: Config,
        samples: tuple[Samples, Samples],
        device: torch.device,
        events: Events,
    ) -> None:
        self.train, self.test = samples
        super().__init__(hvd, method, config, (len(self.train), len(self.test)), events)
        torch.manual_seed(config["seed"])
        self.device = device
        self.model = build(
            config["model"], config["shape"], config["classes"], config["model_options"]
        ).to(device)
        hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)
        scaler = torch.amp.GradScaler(device.type, enabled=config["amp"] == "fp16")
        self.exchange = Exchange(method, self.model, self.wanted, scaler, config["seed"])

    def shapes(self) -> list[Shape]:
        return [tuple(p.shape) for p in self.model.parameters() if p.requires_grad]

    def state(self) -> Any:
        return copy.deepcopy((self.model.state_dict(), self.exchange.optimizer.state_dict()))

    def restore(self, state: Any) -> None:
        weights, optimizer = state
        self.model.load_state_dict(weights)
        self.exchange.optimizer.load_state_dict(optimizer)

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_learning_rate(self, rate: float) -> None:
        for group in self.exchange.optimizer.param_groups:
            group["lr"] = rate

    def step(self, rows: np.ndarray) -> tuple[torch.Tensor, float | None]:
        inputs, labels = self.train.batch(rows)
        self.exchange.optimizer.zero_grad()
        with self._autocast():
            loss = loss_of(self.exchange.model(inputs), labels)
        return loss.detach(), self.exchange.step(loss)

    def average_statistics(self) -> None:
        for name, buffer in self.model.named_buffers():
            if buffer.is_floating_point():
                hvd.allreduce_(buffer, op=hvd.Average, name=f"{self.method.name}.{name}")

    def right(self, rows: np.ndarray) -> tuple[float, float]:
        inputs, labels = self.test.batch(rows)
        self.model.eval()
        with torch.no_grad(), self._autocast():
            right, asked = right_of(self.model(inputs), labels).tolist()
        self.model.train()
        return right, asked

    def weights(self) -> Iterator[np.ndarray]:
        return (parameter.detach().cpu().numpy() for parameter in self.model.parameters())

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _autocast(self) -> torch.autocast:
        amp = self.config["amp"]
        return torch.autocast(self.device.type, AMP.get(amp), enabled=amp is not None)
