"""What each rank of the training benchmark runs, for TensorFlow.

`benchmarks.train --framework tensorflow` starts it as `python -m benchmarks.train_tensorflow CONFIG
EVENTS`; what it reads, says and does in turn is that of benchmarks.train_torch.
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow import keras

import hvd_sign.tensorflow as hvd
from benchmarks import data, rank_tensorflow, turns
from benchmarks.events import Events
from benchmarks.methods import Method, chosen
from benchmarks.rank import Config
from benchmarks.trial_tensorflow import TensorFlowTrial
from hvd_sign.kernels import implementation

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
    rank_tensorflow.main("benchmarks.train_tensorflow", __doc__, train)
