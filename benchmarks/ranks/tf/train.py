"""What each rank of the training benchmark runs, for TensorFlow.

`benchmarks.train --framework tensorflow` starts it as `python -m benchmarks.ranks.tf.train CONFIG
EVENTS`; what it reads, says and does in turn is that of benchmarks.ranks.pytorch.train.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow import keras

import hvd_sign.tensorflow as hvd
from benchmarks import data
from benchmarks.methods.catalogue import Method, chosen
from benchmarks.ranks.events import Events
from benchmarks.ranks.program import Config
from benchmarks.ranks.tf import program
from benchmarks.ranks.tf.trial import TensorFlowTrial
from benchmarks.training import turns
from hvd_sign.core.kernels import implementation

POLICIES = {None: "float32", "bf16": "mixed_bfloat16"}


def choose_device(config: Config) -> None:
    """Shows TensorFlow the processor alone, or this rank's share of the host's GPUs."""
    found = tf.config.list_physical_devices("GPU")
    if config["device"] == "cpu":
        tf.config.set_visible_devices([], "GPU")
    else:
        tf.config.set_visible_devices(found[hvd.local_rank() % len(found)], "GPU")


def train(config: Config, events: Events) -> None:
    """Trains with every method of the configuration."""
    choose_device(config)
    keras.mixed_precision.set_global_policy(POLICIES[config["amp"]])
    samples = data.stored(Path(config["stored"]))

    def make(method: Method) -> TensorFlowTrial:
        return TensorFlowTrial(method, config, samples, events)

    events.emit("ready", kernels=implementation())
    turns.train(config, chosen(config["methods"]), make, keras.backend.clear_session)
    events.emit("done")


if __name__ == "__main__":
    program.main("benchmarks.ranks.tf.train", __doc__, train)
