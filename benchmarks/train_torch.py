"""What each rank of the training benchmark runs, for PyTorch.

`benchmarks.bench` starts it as `python -m benchmarks.train_torch CONFIG EVENTS`. CONFIG is the JSON
file that describes the run; rank 0 appends one JSON object a line to EVENTS: `ready`, `progress`,
`epoch` (raw figures of one method's epoch), `replicas`, `done`.

All methods are trained in the same processes from the same weights on the same batches, and take
turns epoch by epoch, each epoch beginning with another one, so that a machine that becomes busier
or quieter is the same for all.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F

import hvd_sign.torch as hvd
from benchmarks import rank_torch
from benchmarks.data import Source, Split, load
from benchmarks.events import Events, Usage
from benchmarks.methods import Method, chosen
from benchmarks.models import MODELS, parameter_count
from benchmarks.rank_torch import Config
from hvd_sign.kernels import implementation

EVALUATION_BATCH = 500


class Images:
    """A split on this rank: uint8 images, made float32 [B, 1, 28, 28] batch by batch.

    Pixels are shifted and scaled by the mean and the deviation of the training images.
    """

    def __init__(self, split: Split, mean: float, deviation: float) -> None:
        self.pixels = torch.from_numpy(split.images)
        self.labels = torch.from_numpy(split.labels)
        self.mean, self.deviation = mean, deviation

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = self.pixels[rows].float().sub_(self.mean).div_(self.deviation)
        return pixels.unsqueeze(1), self.labels[rows]


class Trial:
    """One method's training: its model, its optimizer, and what its epochs cost."""

    def __init__(self, method: Method, config: Config, train: Images, test: Images) -> None:
        torch.manual_seed(config["seed"])
        self.method, self.config = method, config
        self.train, self.test = train, test
        self.learning_rate = config["learning_rates"][method.name]
        self.model = MODELS[config["model"]]()
        self.coordinates = parameter_count(self.model)
        sgd = torch.optim.SGD(
            self.model.parameters(), lr=self.learning_rate, momentum=method.momentum
        )
        self.optimizer = hvd.DistributedOptimizer(
            sgd,
            named_parameters=[(f"{method.name}.{n}", p) for n, p in self.model.named_parameters()],
            compression=getattr(hvd.Compression, method.compression),
        )
        hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)
        self.steps_done = 0

    def warm_up(self) -> None:
        """Takes a few steps that are not measured, then forgets them."""
        weights = copy.deepcopy(self.model.state_dict())
        state = copy.deepcopy(self.optimizer.state_dict())
        order = self._order(epoch=0)[: self.config["warmup"]]
        for rows in order:
            self._step(rows)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state)

    def epoch(self, epoch: int, progress: Callable[[int], None]) -> dict[str, float]:
        """Trains for one epoch and returns its raw figures, averaged over the ranks."""
        order = self._order(epoch)
        total = self.config["epochs"] * len(order)
        loss_sum, waited = torch.zeros(()), 0.0
        payload = hvd.vote_stats().payload_bytes
        hvd.barrier()
        before, begin = Usage.now(self.config["interface"]), time.perf_counter()
        for rows in order:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * (1 - self.steps_done / total)
            loss, wait = self._step(rows)
            loss_sum += loss
            waited += wait
            self.steps_done += 1
            progress(self.steps_done)
        hvd.barrier()
        seconds = time.perf_counter() - begin
        used = Usage.now(self.config["interface"]).since(before)
        if self.method.payload is None:
            payload = hvd.vote_stats().payload_bytes - payload
        else:
            payload = self.method.payload(hvd.size(), [(self.coordinates,)]) * len(order)
        figures = {
            "seconds": seconds,
            "wait_seconds": waited,
            "payload_bytes": payload,
            "loss": float(loss_sum) / len(order),
            **asdict(used),
        }
        means = self._mean(torch.tensor([*figures.values()], dtype=torch.float64), "figures")
        return {"steps": len(order), **dict(zip(figures, means.tolist(), strict=True))}

    def accuracy(self) -> float:
        """The share of the test images that the model gets right; each rank looks at its part."""
        rows = torch.arange(hvd.rank(), len(self.test.labels), hvd.size())
        right = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for part in rows.split(EVALUATION_BATCH):
                pixels, labels = self.test.batch(part)
                right += (self.model(pixels).argmax(1) == labels).sum()
        return float(self._mean(right, "right")) * hvd.size() / len(self.test.labels)

    def replicas_equal(self) -> bool:
        """Whether all ranks hold bit for bit the same weights."""
        weights = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        bits = weights.view(torch.int32).long()
        # Two sums, one of them weighted by position: ranks that differ hardly agree in both.
        digest = torch.stack([bits.sum(), (bits * torch.arange(len(bits))).sum()])
        every = hvd.allgather(digest.unsqueeze(0), name=f"{self.method.name}.digest")
        return bool((every == every[0]).all())

    def _step(self, rows: torch.Tensor) -> tuple[torch.Tensor, float]:
        """One step on this rank's rows: its loss, and the seconds it waited for the exchange."""
        pixels, labels = self.train.batch(rows)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(pixels), labels)
        loss.backward()
        begin = time.perf_counter()
        self.optimizer.synchronize()
        waited = time.perf_counter() - begin
        with self.optimizer.skip_synchronize():
            self.optimizer.step()
        return loss.detach(), waited

    def _order(self, epoch: int) -> torch.Tensor:
        """This rank's rows, int64[steps, batch]: a share of an order that is equal everywhere."""
        rng = np.random.default_rng((self.config["seed"], epoch))
        order = rng.permutation(len(self.train.labels))
        batch = self.config["batch"]
        steps = len(order) // (batch * hvd.size())
        rows = order[: steps * batch * hvd.size()].reshape(steps, hvd.size(), batch)
        return torch.from_numpy(rows[:, hvd.rank()].copy())

    def _mean(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return hvd.allreduce(values, op=hvd.Average, name=f"{self.method.name}.{name}")


def train(config: Config, events: Events) -> None:
    """Trains with every method of the configuration, in turns."""
    training, testing = load(Source(**config["source"]))
    limit = config["limit"] or len(training)
    training = Split(training.images[:limit], training.labels[:limit])
    scale = float(training.images.mean()), float(training.images.std())
    images = Images(training, *scale), Images(testing, *scale)
    trials = [Trial(method, config, *images) for method in chosen(config["methods"])]
    events.emit("ready", parameters=trials[0].coordinates, kernels=implementation())
    for trial in trials:
        trial.warm_up()
    for epoch in range(config["epochs"]):
        first = epoch % len(trials)
        for trial in trials[first:] + trials[:first]:
            name = trial.method.name

            def progress(done: int, name: str = name) -> None:
                events.progress(name, done)

            figures = trial.epoch(epoch, progress)
            events.emit("epoch", method=name, epoch=epoch, **figures, accuracy=trial.accuracy())
    for trial in trials:
        events.emit("replicas", method=trial.method.name, equal=trial.replicas_equal())
    events.emit("done")


if __name__ == "__main__":
    rank_torch.main("benchmarks.train_torch", __doc__, train)
