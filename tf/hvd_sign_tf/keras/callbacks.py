"""Horovod's callbacks for ``Model.fit``, for Keras 2 and 3, on both runtimes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hvd_sign_tf.backend import backend, horovod_api
from hvd_sign_tf.bridge import legal
from hvd_sign_tf.keras.schedules import LearningRateScheduleCallback, LearningRateWarmupCallback
from hvd_sign_tf.keras.sessions import value_of
from hvd_sign_tf.local import LocalVariables
from hvd_sign_tf.wrapping import ExchangingOptimizer

__all__ = [
    "BestModelCheckpoint",
    "BroadcastGlobalVariablesCallback",
    "LearningRateScheduleCallback",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
]

logger = logging.getLogger("hvd_sign")


class BroadcastGlobalVariablesCallback(tf.keras.callbacks.Callback):
    """Lets all ranks begin with the weights, and the optimizer's state, of one.

    It does so before the first batch; where some rank's model is not built until then, after it, as
    Horovod. The states of random generators stay each rank's own. It also switches XLA off where
    that could not compile what talks to other ranks.

    Args:
        root_rank: whose they are.
        device: the broadcasts' device, in TensorFlow's words.
        local_variables: one or several that are not broadcast.

    Raises:
        ValueError: a local variable that is none.
    """

    def __init__(self, root_rank: int, device: str = "", local_variables: Any = None) -> None:
        super().__init__()
        self.root_rank = root_rank
        self.device = device
        self.broadcast_done = False
        self._local = LocalVariables()
        if local_variables is None:
            local_variables = []
        elif hasattr(local_variables, "assign"):
            local_variables = [local_variables]
        for variable in local_variables:
            if not hasattr(variable, "assign"):
                raise ValueError(f"local_variables: expected tf.Variable, got {variable!r}")
            self.register_local_var(variable)

    def register_local_var(self, var: Any) -> None:
        """Leaves a variable to each rank."""
        self._local.register(var)

    def set_model(self, model: Any) -> None:
        """Takes the model, and switches XLA off if its steps call the host."""
        super().set_model(model)
        optimizer = getattr(model, "optimizer", None)
        calls_host = backend.runtime == "mpi" or isinstance(optimizer, ExchangingOptimizer)
        if calls_host and getattr(model, "jit_compile", False):
            if horovod_api.rank() == 0:
                logger.warning(
                    "XLA cannot compile what talks to other ranks: jit_compile is now False"
                )
            # Keras 2's property of that name would forget what compile() was given.
            model._jit_compile = False
            model.train_function = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Broadcasts, if all ranks' models have their variables."""
        if self.broadcast_done:
            return
        built = tf.constant([int(self.model.built)])
        if int(
            value_of(horovod_api.allreduce(built, op=horovod_api.Min, name="hvd_sign.built"))[0]
        ):
            self._broadcast()

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Broadcasts, unless that is done."""
        if not self.broadcast_done:
            self._broadcast()

    def _broadcast(self) -> None:
        model, optimizer = self.model, self.model.optimizer
        build_optimizer(optimizer, model.trainable_variables)
        with tf.device(self.device):
            for variables in (model.weights, optimizer_variables(optimizer)):
                shared = [variable for variable in variables if variable not in self._local]
                value_of(horovod_api.broadcast_variables(shared, root_rank=self.root_rank))
        if hasattr(optimizer, "broadcast_exchange_state"):
            optimizer.broadcast_exchange_state(self.root_rank)
        self.broadcast_done = True


def build_optimizer(optimizer: Any, variables: Sequence[Any]) -> None:
    """Makes an optimizer's slots, unless they are there."""
    if not hasattr(optimizer, "build"):
        optimizer._create_all_weights(variables)
    elif not getattr(optimizer, "built", False):
        optimizer.build(variables)


def optimizer_variables(optimizer: Any) -> list[Any]:
    """Slots, step count and learning rate; a method in Keras' legacy optimizers."""
    variables = optimizer.variables
    return list(variables() if callable(variables) else variables)


class MetricAverageCallback(tf.keras.callbacks.Callback):
    """Averages the metrics of an epoch over all ranks, for the callbacks that come after it.

    Args:
        device: the averaging's device, in TensorFlow's words.
    """

    def __init__(self, device: str = "") -> None:
        super().__init__()
        self.device = device

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replaces each metric in ``logs`` by the ranks' mean."""
        if not logs:
            return
        names = sorted(logs)
        name = legal(f"metrics {names}")
        with tf.device(self.device):
            own = [tf.constant(np.asarray(logs[name]), tf.float64) for name in names]
            means = horovod_api.grouped_allreduce(own, op=horovod_api.Average, name=name)
        for name, mean in zip(names, value_of(means), strict=True):
            logs[name] = np.asarray(mean) if mean.shape else float(mean)


class BestModelCheckpoint(tf.keras.callbacks.ModelCheckpoint):
    """Keras' ``ModelCheckpoint`` of the best model alone, by Horovod's signature.

    As there, ``filepath`` is set on it before the training; one rank is enough to have it.

    Args:
        monitor: the metric by which models are compared.
        verbose: 1 tells of each file.
        save_weights_only: the weights without the model.
        mode: ``"auto"``, ``"min"`` or ``"max"``.
        save_freq: ``"epoch"``, or after so many batches.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
    ) -> None:
        super().__init__(
            # Keras 3 wants a name at once.
            filepath="best.weights.h5" if save_weights_only else "best.keras",
            monitor=monitor,
            verbose=verbose,
            save_best_only=True,
            save_weights_only=save_weights_only,
            mode=mode,
            save_freq=save_freq,
        )
        self.filepath: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Raises ValueError: nobody has set ``filepath``."""
        if self.filepath is None:
            raise ValueError("BestModelCheckpoint.filepath: expected a file's name, got None")
        self.filepath = str(self.filepath)
        super().on_train_begin(logs)
