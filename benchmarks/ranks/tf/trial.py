"""One method's training on one rank, for TensorFlow, with Keras 2 or 3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import keras

import hvd_sign.tensorflow as hvd
from benchmarks.data import Split
from benchmarks.methods.catalogue import Method
from benchmarks.ranks.events import Events
from benchmarks.ranks.program import Config
from benchmarks.ranks.tf.exchange import distributed
from benchmarks.ranks.tf.models import build
from benchmarks.training.shapes import Shape
from benchmarks.training.tasks import Optimizer
from benchmarks.training.trial import Trial


class TensorFlowTrial(Trial):
    """One method's model and optimizer; a step is one tf.function.

    Args:
        method: of exchanging gradients.
        config: of the benchmark; its `kind` is images.
        samples: of training and of testing.
        events: gets `progress`, `epoch` and `replicas`.
    """

    def __init__(
        self, method: Method, config: Config, samples: tuple[Split, Split], events: Events
    ) -> None:
        self.train, self.test = samples
        super().__init__(hvd, method, config, (len(self.train), len(self.test)), events)
        keras.utils.set_random_seed(config["seed"])
        self.model = build(
            config["model"], config["shape"], config["classes"], config["model_options"]
        )
        hvd.broadcast_variables(self.model.variables, root_rank=0)
        self.optimizer = _plain(self.wanted)
        self.optimizer.build(self.model.trainable_variables)
        mean, deviation = np.float32(config["pixel_scale"])
        self._mean, self._deviation = tf.constant(mean), tf.constant(deviation)
        pixels = tf.TensorSpec([None, *config["shape"]], tf.uint8)
        labels = tf.TensorSpec([None], tf.int64)
        self._step = tf.function(self._take_step, [pixels, labels], autograph=False)
        self._judge = tf.function(self._count_right, [pixels, labels], autograph=False)

    def shapes(self) -> list[Shape]:
        return [tuple(variable.shape) for variable in self.model.trainable_variables]

    def state(self) -> Any:
        return [variable.numpy() for variable in self._variables()]

    def restore(self, state: Any) -> None:
        for variable, value in zip(self._variables(), state, strict=True):
            variable.assign(value)

    def seed(self, seed: int) -> None:
        """No step of these models draws anything, and a new seed would cost the next step 0.2 s."""

    def set_learning_rate(self, rate: float) -> None:
        self.optimizer.learning_rate = rate

    def step(self, rows: np.ndarray) -> tuple[tf.Tensor, float | None]:
        # Inside a tf.function nobody sees how long an exchange is waited for.
        waited = 0.0 if self.method.group == "alone" else None
        return self._step(self.train.inputs[rows], self.train.labels[rows]), waited

    def average_statistics(self) -> None:
        for number, variable in enumerate(self.model.non_trainable_weights):
            name = f"{self.method.name}.{number}"
            mean = hvd.allreduce(tf.convert_to_tensor(variable), op=hvd.Average, name=name)
            variable.assign(mean)

    def right(self, rows: np.ndarray) -> tuple[float, float]:
        return float(self._judge(self.test.inputs[rows], self.test.labels[rows])), len(rows)

    def weights(self) -> Iterator[np.ndarray]:
        return (variable.numpy() for variable in self.model.trainable_variables)

    def settle(self) -> None:
        tf.test.experimental.sync_devices()

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables]

    def _take_step(self, pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        weights = self.model.trainable_variables
        # So that the methods' operations have different names.
        with tf.name_scope(self.method.name):
            with tf.GradientTape() as tape:
                logits = self.model(self._inputs(pixels), training=True)
                loss = _loss(logits, labels)
            tape = distributed(tape, self.method, self.config["seed"])
            gradients = tape.gradient(loss, weights)
            self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return loss

    def _count_right(self, pixels: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = self.model(self._inputs(pixels), training=False)
        return tf.math.count_nonzero(tf.argmax(logits, -1) == labels)

    def _inputs(self, pixels: tf.Tensor) -> tf.Tensor:
        """uint8[B, C, H, W] -> float32[B, H, W, C], scaled as the training images ask for."""
        channels_last = tf.transpose(pixels, [0, 2, 3, 1])
        return (tf.cast(channels_last, tf.float32) - self._mean) / self._deviation


def _loss(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean cross entropy, in nats."""
    logits = tf.cast(logits, tf.float32)
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(each)


def _plain(wanted: Optimizer) -> keras.optimizers.Optimizer:
    """Of verdicts on an algorithm's signal too: there SGD without momentum is its step."""
    return keras.optimizers.SGD(
        learning_rate=wanted.learning_rate,
        momentum=wanted.momentum,
        weight_decay=wanted.weight_decay or None,
    )
