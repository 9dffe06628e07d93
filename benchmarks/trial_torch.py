"""One method's training on one rank, and what its epochs cost, for PyTorch."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

import hvd_sign.torch as hvd
from benchmarks.clock import Clock
from benchmarks.data import IMAGES, TOKENS
from benchmarks.events import Events, Usage
from benchmarks.exchange_torch import Exchange
from benchmarks.methods import Method
from benchmarks.models import build
from benchmarks.rank_torch import Config
from benchmarks.samples_torch import Samples, loss_of, right_of
from benchmarks.tasks import Optimizer

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
EVALUATION_SAMPLES = {IMAGES: 100, TOKENS: 16}  # in a batch
DIGEST_PART = 1 << 20


class Trial:
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
        torch.manual_seed(config["seed"])
        self.method, self.config, self.device, self.events = method, config, device, events
        self.train, self.test = samples
        self.model = build(
            config["model"], config["shape"], config["classes"], config["model_options"]
        ).to(device)
        hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)
        wanted = Optimizer(**config["optimizers"][method.name])
        self.learning_rate = wanted.learning_rate
        scaler = torch.amp.GradScaler(device.type, enabled=config["amp"] == "fp16")
        self.exchange = Exchange(method, self.model, wanted, scaler, config["seed"])
        shapes = [tuple(p.shape) for p in self.model.parameters() if p.requires_grad]
        self.payload = None if method.payload is None else method.payload(hvd.size(), shapes)
        self.steps_done = 0

    def warm_up(self) -> None:
        """Takes a few steps that are not measured, then forgets them."""
        weights = copy.deepcopy(self.model.state_dict())
        state = copy.deepcopy(self.exchange.optimizer.state_dict())
        for rows in self._order(epoch=0)[: self.config["warmup"]]:
            self._step(rows)
            self._tell()
        self.model.load_state_dict(weights)
        self.exchange.optimizer.load_state_dict(state)

    def epoch(self, epoch: int) -> None:
        """Trains for one epoch, and tells its raw figures, averaged over the ranks."""
        # What dropout leaves out is the same for all methods.
        torch.manual_seed(self.config["seed"] + 1 + epoch * hvd.size() + hvd.rank())
        order = self._order(epoch)
        stats = hvd.vote_stats().asdict()
        hvd.barrier()
        before = Usage.now(self.config["interface"])
        clock = Clock(self.config["batches_per_iter"], self._settle, self._tell)
        for rows in order:
            self._set_learning_rate()
            loss, waited = self._step(rows)
            self.steps_done += 1
            clock.count(loss, waited)
        self._settle()
        hvd.barrier()
        seconds = clock.elapsed()
        used = Usage.now(self.config["interface"]).since(before)
        stats = {name: value - stats[name] for name, value in hvd.vote_stats().asdict().items()}
        counted = self.payload is None
        figures = {
            "seconds": seconds,
            "harness_seconds": clock.own_seconds,
            "wait_seconds": clock.waited or 0.0,
            "payload_bytes": stats["payload_bytes"] if counted else self.payload * len(order),
            "loss": float(clock.loss) / len(order),
            **asdict(used),
        }
        told = self._means(figures, "figures")
        if clock.waited is None:
            told["wait_seconds"] = None
        groups = self._means(dict(enumerate(clock.groups)), "groups")
        samples = self.config["batches_per_iter"] * self.config["batch"] * hvd.size()
        self.events.emit(
            "epoch",
            method=self.method.name,
            epoch=epoch,
            steps=len(order),
            **told,
            iterations=[samples / group for group in groups.values()],
            stats=self._means(stats, "stats") if self.method.group == "ours" else None,
            accuracy=self.accuracy(),
        )

    def accuracy(self) -> float | None:
        """The share of the test answers that are right; each rank looks at its part.

        None without test samples, and of workers whose weights differ on purpose.
        """
        if not len(self.test) or self.method.group == "alone":
            return None
        for name, buffer in self.model.named_buffers():
            if buffer.is_floating_point():
                # Each worker's own, as batch norm's statistics: judged by their mean.
                hvd.allreduce_(buffer, op=hvd.Average, name=f"{self.method.name}.{name}")
        rows = np.arange(hvd.rank(), len(self.test), hvd.size())
        kind = self.config["kind"]
        right = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        with torch.no_grad(), self._autocast():
            for first in range(0, len(rows), EVALUATION_SAMPLES[kind]):
                inputs, labels = self.test.batch(rows[first : first + EVALUATION_SAMPLES[kind]])
                right += right_of(self.model(inputs), labels).cpu()
                self._tell()
        self.model.train()
        right = hvd.allreduce(right, op=hvd.Sum, name=f"{self.method.name}.right")
        return float(right[0] / right[1])

    def finish(self) -> None:
        """Tells whether all ranks hold bit for bit the same weights."""
        if self.method.group == "alone":
            return
        digest = torch.zeros(2, dtype=torch.int64)
        for parameter in self.model.parameters():
            for part in parameter.detach().flatten().split(DIGEST_PART):
                bits = part.view(torch.int32).long()
                places = torch.arange(len(bits), device=bits.device)
                # Two sums, one weighted by position: ranks that differ hardly agree in both.
                digest = 31 * digest + torch.stack([bits.sum(), (bits * places).sum()]).cpu()
        every = hvd.allgather(digest.unsqueeze(0), name=f"{self.method.name}.digest")
        equal = bool((every == every[0]).all())
        self.events.emit("replicas", method=self.method.name, equal=equal)

    def _set_learning_rate(self) -> None:
        share_left = 1 - self.steps_done / (self.config["epochs"] * self.config["steps"])
        for group in self.exchange.optimizer.param_groups:
            group["lr"] = self.learning_rate * share_left

    def _step(self, rows: np.ndarray) -> tuple[torch.Tensor, float | None]:
        """One step on this rank's rows: its loss, and the seconds it waited for the exchange."""
        inputs, labels = self.train.batch(rows)
        self.exchange.optimizer.zero_grad()
        with self._autocast():
            loss = loss_of(self.exchange.model(inputs), labels)
        return loss.detach(), self.exchange.step(loss)

    def _autocast(self) -> torch.autocast:
        amp = self.config["amp"]
        return torch.autocast(self.device.type, AMP.get(amp), enabled=amp is not None)

    def _order(self, epoch: int) -> np.ndarray:
        """This rank's rows, int64[steps, batch]: a share of an order that is equal everywhere."""
        config = self.config
        rng = np.random.default_rng((config["seed"], epoch))
        used = config["steps"] * hvd.size() * config["batch"]
        order = rng.permutation(config["samples"])[:used] % len(self.train)
        return order.reshape(config["steps"], hvd.size(), config["batch"])[:, hvd.rank()]

    def _tell(self) -> None:
        self.events.progress(self.method.name, self.steps_done)

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _means(self, figures: dict[Any, float], name: str) -> dict[Any, Any]:
        """Means over the ranks."""
        mine = torch.tensor(list(figures.values()), dtype=torch.float64)
        means = hvd.allreduce(mine, op=hvd.Average, name=f"{self.method.name}.{name}")
        return dict(zip(figures, means.tolist(), strict=True))
