"""What each rank of the training benchmark runs, for PyTorch.

`benchmarks.train` starts it as `python -m benchmarks.ranks.pytorch.train CONFIG EVENTS`. CONFIG is
the JSON file that describes the run; rank 0 appends one JSON object a line to EVENTS: `ready`,
`progress`, `epoch` (raw figures of one method's epoch), `replicas`, `done`.

All methods are trained in the same processes from the same weights on the same batches. They take
turns epoch by epoch; or, where the models are large, one is trained to its end, and its memory
freed, before the next one begins.
"""

from __future__ import annotations

from pathlib import Path

import torch

import hvd_sign.torch as hvd
from benchmarks import data
from benchmarks.methods.catalogue import Method, chosen
from benchmarks.ranks.events import Events
from benchmarks.ranks.program import Config
from benchmarks.ranks.pytorch import distributed, program
from benchmarks.ranks.pytorch.exchange import DDP_GROUPS
from benchmarks.ranks.pytorch.samples import Samples
from benchmarks.ranks.pytorch.trial import TorchTrial
from benchmarks.training import turns
from hvd_sign.core.kernels import implementation


def device_of(config: Config) -> torch.device:
    """Where this rank computes: the processor, or its share of the host's GPUs."""
    if config["device"] == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", hvd.local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def train(config: Config, events: Events) -> None:
    """Trains with every method of the configuration."""
    device = device_of(config)
    train, test = (Samples(s, config, device) for s in data.stored(Path(config["stored"])))
    methods = chosen(config["methods"])
    ddp = any(method.group in DDP_GROUPS for method in methods)
    if ddp:
        distributed.start(config["interface"])

    def make(method: Method) -> TorchTrial:
        return TorchTrial(method, config, (train, test), device, events)

    events.emit("ready", kernels=implementation())
    turns.train(config, methods, make, torch.cuda.empty_cache)
    if ddp:
        distributed.stop()
    events.emit("done")


if __name__ == "__main__":
    program.main("benchmarks.ranks.pytorch.train", __doc__, train)
