"""Saves and loads in several launches, of other sizes, some of which end in the midst of a save.

`checkpoint.py PATH`: loads what is there, checks it against numpy, trains three steps and saves.
`checkpoint.py PATH RANK COUNT`: that rank dies as it sees its COUNT-th file of the save to disk.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

import hvd_sign.torch as hvd

hvd.init()
path = Path(sys.argv[1])
rank, size = hvd.rank(), hvd.size()
SIZE, LR, BETA = 3000, 2.0**-6, 0.75


def gradient(rank: int, step: int) -> np.ndarray:
    return np.random.default_rng([rank, step]).standard_normal(SIZE, np.float32)


model = torch.nn.ParameterDict({"x": torch.zeros(SIZE)})
optimizer = hvd.Signum(model.parameters(), LR, BETA, ties="zero")
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
sizes = []
if path.exists():
    sizes = hvd.load_checkpoint(path, model, optimizer)["sizes"]

parameter, momenta = np.zeros(SIZE, np.float32), []
for turn, ranks in enumerate([*sizes, size]):
    if momenta and len(momenta) != ranks:
        middle = np.median(np.stack(momenta).astype(np.float64), axis=0).astype(np.float32)
        momenta = [middle.copy() for _ in range(ranks)]
    momenta = momenta or [np.zeros(SIZE, np.float32) for _ in range(ranks)]
    if turn == len(sizes):
        np.testing.assert_array_equal(model["x"].detach().numpy(), parameter)
        if turn:
            kept = optimizer.state_dict()["hvd_sign"]
            np.testing.assert_array_equal(kept["momentum/0"].numpy(), momenta[rank])
            assert int(kept["step"]) == 3 * turn
    for step in range(3 * turn, 3 * turn + 3):
        votes = np.zeros(SIZE)
        for theirs in range(ranks):
            scaled = np.float32(1 - BETA) * gradient(theirs, step)
            momenta[theirs] = np.float32(BETA) * momenta[theirs] + scaled
            votes += np.sign(momenta[theirs])
        parameter = parameter - np.float32(LR) * np.sign(votes).astype(np.float32)
        if turn == len(sizes):
            optimizer.zero_grad()
            (model["x"] * torch.from_numpy(gradient(rank, step))).sum().backward()
            optimizer.step()
np.testing.assert_array_equal(model["x"].detach().numpy(), parameter)

if len(sys.argv) > 2 and int(sys.argv[2]) == rank:
    real, calls = os.fsync, []

    def dies(number: int) -> None:
        calls.append(number)
        if len(calls) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        real(number)

    os.fsync = dies
hvd.save_checkpoint(path, model, optimizer, sizes=[*sizes, size])
sys.stdout.write(f"rank {rank} of {size} done, after {sizes}\n")  # in one piece
sys.stdout.flush()
hvd.shutdown()
