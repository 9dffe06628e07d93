"""Trains by vote while workers come and go; checked, bit for bit, against numpy's replay of it.

`elastic_votes.py FOLDER LAST [dies]`: LAST steps in all; the worker on 127.0.0.1 dies in the midst
of its eighth, of which two in three are committed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch

import hvd_sign.torch as hvd

folder, last, dies = Path(sys.argv[1]), int(sys.argv[2]), "dies" in sys.argv
worker = f"{os.environ['HOROVOD_HOSTNAME']}/{os.environ['HOROVOD_LOCAL_RANK']}"
VICTIM = "127.0.0.1/0"
SIZE, LR, BETA = 5000, 2.0**-6, 0.9


def normal(what: str) -> np.ndarray:
    seed = zlib.crc32(what.encode())
    return np.random.default_rng(seed).standard_normal(SIZE, np.float32)


TARGET = normal("target")


def gradient(parameter: np.ndarray, worker: str, step: int) -> np.ndarray:
    return (parameter - TARGET) + normal(f"{worker} {step}")


class Replay:
    """What the workers compute together, in numpy."""

    def __init__(self, workers: list[str]) -> None:
        self.parameter = np.zeros(SIZE, np.float32)
        self.momentum = {name: np.zeros(SIZE, np.float32) for name in workers}

    def step(self, workers: list[str], step: int) -> None:
        new = [name for name in workers if name not in self.momentum]
        self.momentum = {n: m for n, m in self.momentum.items() if n in workers}
        middle = np.median(np.stack(list(self.momentum.values())).astype(np.float64), axis=0)
        self.momentum |= {name: middle.astype(np.float32) for name in new}
        votes = np.zeros(SIZE)
        for name in workers:
            g = gradient(self.parameter, name, step)
            v = np.float32(BETA) * self.momentum[name] + np.float32(1 - BETA) * g
            self.momentum[name] = v
            votes += np.sign(v)
        self.parameter = self.parameter - np.float32(LR) * np.sign(votes).astype(np.float32)


hvd.init()
model = torch.nn.ParameterDict({"x": torch.zeros(SIZE)})
with torch.no_grad():
    model["x"] += 7.0 * (hvd.rank() != 0)  # to be synchronised
optimizer = hvd.Signum(model.parameters(), LR, BETA, ties="zero")
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
state = hvd.elastic.TorchState(model, optimizer, batch=0, workers=[], losses=[])
taken = []


@hvd.elastic.run
def train(state) -> None:
    taken.append(hvd.size())
    print(f"worker {worker} is rank {hvd.rank()} of {hvd.size()}, batch {state.batch}", flush=True)
    while state.batch < last:
        state.optimizer.zero_grad()
        x = model["x"]
        g = torch.from_numpy(gradient(x.detach().numpy(), worker, state.batch))
        if dies and worker == VICTIM and state.batch == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        (x * g).sum().backward()
        state.optimizer.step()
        # Unnamed operations are numbered, on workers that have just come too.
        theirs = hvd.allgather(torch.tensor([list(worker.ljust(32).encode())]))
        loss = float(np.mean((x.detach().numpy() - TARGET) ** 2))
        state.workers = [*state.workers, [bytes(t.tolist()).decode().strip() for t in theirs]]
        state.losses = [*state.losses, loss]
        state.batch += 1
        (folder / f"reached.{state.batch}").touch()
        if not dies:
            time.sleep(0.2)
        if state.batch % 3 == 0:
            state.commit()


train(state)
replay = Replay(state.workers[0])
for step, workers in enumerate(state.workers):
    replay.step(workers, step)
np.testing.assert_array_equal(model["x"].detach().numpy(), replay.parameter)
kept = optimizer.state_dict()["hvd_sign"]
np.testing.assert_array_equal(kept["momentum/0"].numpy(), replay.momentum[worker])
assert int(kept["step"]) == last == len(state.losses)
# What signs of steps of one size do, whoever votes: down, until within their size.
assert all(b < a for a, b in zip(state.losses, state.losses[1:], strict=False)), state.losses
digest = zlib.crc32(model["x"].detach().numpy().tobytes())
sizes = [len(workers) for workers in state.workers]
print(f"worker {worker} done: {digest} {sizes} worlds {taken}", flush=True)
hvd.shutdown()
