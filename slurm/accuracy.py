"""Trains a small network to an accuracy, and goes on from its last checkpoint when started again.

    srun --mpi=pmix python -m slurm.accuracy --folder results/run --method vote --epochs 20

A file FOLDER/stop makes all ranks save a checkpoint after the same step, and end. FOLDER/checkpoint
has the last one, with what votes keep of each worker's own (Signum's momentum). The end is
FOLDER/accuracy.json: the accuracy after each epoch, and a digest of the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hvd_sign.torch as hvd
from benchmarks import data
from benchmarks.ranks.pytorch.models import small_cnn
from benchmarks.ranks.pytorch.samples import Samples, loss_of, right_of

METHODS = ("vote", "fp32", "fp16")
# Signum's learning rate falls as that of SGD does; it moves every coordinate by as much.
RATES = {"vote": 1e-3, "fp32": 0.05, "fp16": 0.05}
TEST_BATCH = 250


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m slurm.accuracy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="of checkpoints and the result")
    add("--method", choices=METHODS, default="vote")
    add("--data", default="auto", help="fashion-mnist, digits or a folder of images (%(default)s)")
    add("--limit", type=int, help="train on the first so many samples only")
    add("--width", type=int, default=1024, help="of the dense layer (%(default)s)")
    add("--epochs", type=int, default=20)
    add("--batch", type=int, default=64, help="samples of a rank and step (%(default)s)")
    add("--learning-rate", type=float, help=f"at the start, {RATES} by default")
    add("--look-every", type=int, default=10, metavar="STEPS", help="for the file `stop`")
    add("--step-delay", type=float, default=0.0, metavar="SECONDS", help="slower, to try requeues")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def load_data(wanted: str, limit: int | None) -> data.Dataset:
    """The data set, the same on all ranks; one rank a node looks for it first."""
    found = None
    shape = data.Shape(kind=data.IMAGES, side=None, sequence=1, vocabulary=1, seed=0)
    for turn in (True, False):
        if (hvd.local_rank() == 0) is turn:
            found = data.load(wanted, shape, limit)
        hvd.barrier()
    assert found is not None
    titles = hvd.allgather_object((found.title, len(found.train)), name="data")
    if len(set(titles)) > 1:
        raise SystemExit(f"--data {wanted}: nodes have different ones: {sorted(set(titles))}")
    return found


class Run:
    """One rank's training.

    Attributes:
        step: how many steps are done.
        accuracies: on the test samples, after each epoch that is done.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        found = load_data(given.data, given.limit)
        config = {"kind": found.kind, "masked": False, "seed": given.seed}
        config["pixel_scale"] = found.pixel_scale()
        cpu = torch.device("cpu")
        self.device = cpu
        if torch.cuda.is_available():
            self.device = torch.device("cuda", hvd.local_rank() % torch.cuda.device_count())
        self.train = Samples(found.train, config, self.device)
        self.test = Samples(found.test, config, self.device)
        self.steps = len(found.train) // (given.batch * hvd.size())
        if self.steps < 1:
            raise SystemExit(f"too few samples: {len(found.train)} for one step of all ranks")
        torch.manual_seed(given.seed)
        self.model = small_cnn(tuple(found.shape), found.classes, given.width).to(self.device)
        hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)
        self.rate = given.learning_rate or RATES[given.method]
        self.optimizer = self._optimizer()
        self.checkpoint = given.folder / "checkpoint"
        self.step, self.accuracies = 0, list[float]()
        self._restore()

    def _optimizer(self) -> Any:
        parameters, compression = self.model.parameters(), hvd.Compression.none
        if self.given.method == "vote":
            optimizer: torch.optim.Optimizer = hvd.Signum(parameters, lr=self.rate)
        else:
            optimizer = torch.optim.SGD(parameters, lr=self.rate, momentum=0.9)
            if self.given.method == "fp16":
                compression = hvd.Compression.fp16
        return hvd.DistributedOptimizer(
            optimizer, named_parameters=self.model.named_parameters(), compression=compression
        )

    def to_the_end(self) -> bool:
        """Trains until all epochs are done, or all ranks have heard that they shall stop."""
        total = self.given.epochs * self.steps
        while self.step < total:
            epoch, place = divmod(self.step, self.steps)
            self._take(self._order(epoch)[place], 1 - self.step / total)
            self.step += 1
            if self.step % self.steps == 0:
                self.accuracies.append(self._accuracy())
                self._say(f"epoch {epoch + 1}: {self.accuracies[-1]:.2%} right")
                self._save()
            if self.step % self.given.look_every == 0 and self.step < total and self._told():
                self._save()
                self._say(f"stopped after step {self.step} of {total}")
                return False
        return True

    def digest(self) -> str:
        """Of all weights."""
        found = hashlib.blake2b(digest_size=16)
        for parameter in self.model.parameters():
            found.update(parameter.detach().cpu().numpy().tobytes())
        return found.hexdigest()

    def _order(self, epoch: int) -> np.ndarray:
        rows = np.random.default_rng((self.given.seed, epoch)).permutation(len(self.train))
        used = self.steps * hvd.size() * self.given.batch
        return rows[:used].reshape(self.steps, hvd.size(), self.given.batch)[:, hvd.rank()]

    def _take(self, rows: np.ndarray, share_left: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share_left
        inputs, labels = self.train.batch(rows)
        self.optimizer.zero_grad()
        loss_of(self.model(inputs), labels).backward()
        self.optimizer.step()
        time.sleep(self.given.step_delay)

    def _accuracy(self) -> float:
        right = torch.zeros(2, dtype=torch.float64)
        mine = np.arange(hvd.rank(), len(self.test), hvd.size())
        with torch.no_grad():
            for first in range(0, len(mine), TEST_BATCH):
                inputs, labels = self.test.batch(mine[first : first + TEST_BATCH])
                right += right_of(self.model(inputs), labels).cpu()
        right = hvd.allreduce(right, op=hvd.Sum, name="right")
        return float(right[0] / right[1])

    def _told(self) -> bool:
        """Whether rank 0 sees the file `stop`, on all ranks alike."""
        seen = hvd.rank() == 0 and (self.given.folder / "stop").exists()
        return bool(hvd.broadcast(torch.tensor(int(seen)), root_rank=0, name="stop"))

    def _save(self) -> None:
        hvd.save_checkpoint(
            self.checkpoint,
            self.model,
            self.optimizer,
            step=self.step,
            accuracies=self.accuracies,
            belongs=self._belongs(),
        )

    def _restore(self) -> None:
        """Goes on from the last checkpoint, if a run of the same kind has left one."""
        try:
            saved = hvd.load_checkpoint(self.checkpoint)
        except FileNotFoundError:
            return
        for what, mine in self._belongs().items():
            theirs = saved["belongs"][what]
            if theirs != mine:
                raise SystemExit(
                    f"{self.checkpoint} was made with {what} {theirs}, this run has {mine}"
                )
        hvd.load_checkpoint(self.checkpoint, self.model, self.optimizer)
        self.step, self.accuracies = saved["step"], saved["accuracies"]
        self._say(f"goes on after step {self.step}")

    def _belongs(self) -> dict[str, Any]:
        """What has to be the same when a run goes on."""
        names = ("method", "epochs", "batch", "limit", "width", "seed")
        return {"ranks": hvd.size(), **{name: getattr(self.given, name) for name in names}}

    def _say(self, text: str) -> None:
        if hvd.rank() == 0:
            print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line on this rank."""
    given = parse(argv)
    hvd.init()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    run = Run(given)
    if run.to_the_end():
        digests = hvd.allgather_object(run.digest(), name="digest")
        if hvd.rank() == 0:
            told = {
                "method": given.method,
                "ranks": hvd.size(),
                "accuracies": run.accuracies,
                "weights": digests[0],
                "replicas_equal": len(set(digests)) == 1,
            }
            (given.folder / "accuracy.json").write_text(json.dumps(told, indent=1) + "\n")
    hvd.shutdown()


if __name__ == "__main__":
    main()
