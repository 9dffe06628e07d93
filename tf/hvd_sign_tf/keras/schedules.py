"""Callbacks that set the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from hvd_sign_tf.backend import horovod_api
from hvd_sign_tf.keras.sessions import value_of


class LearningRateScheduleCallback(tf.keras.callbacks.Callback):
    """Sets the learning rate to ``initial_lr * multiplier(epoch)`` between two epochs.

    Momentum correction multiplies the momentum by new rate / old rate for the batch in which the
    rate changes (Goyal et al. 2017, arXiv 1706.02677, remark 2). Of a momentum that is a plain
    number, as in all but Keras' legacy optimizers, a compiled step does not see the change: such a
    one is left as it is.

    Args:
        initial_lr: the learning rate that is multiplied.
        multiplier: f(epoch), or a constant c, which means c ** (epoch - start_epoch).
        start_epoch: the first one in which the rate is set.
        end_epoch: the first one in which it no longer is; None: none.
        staircase: set at the start of each epoch, which is an integer; else at each batch, where
            the epoch has a fraction.
        momentum_correction: see above.
        steps_per_epoch: batches; None: what ``fit`` says.

    Raises:
        ValueError: no ``initial_lr``.
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: float | Callable[[Any], float],
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if initial_lr is None:
            raise ValueError("initial_lr: expected a number, got None")
        self.initial_lr = initial_lr
        self.start_epoch = start_epoch
        self.end_epoch = end_epoch
        self.staircase = staircase
        self.momentum_correction = momentum_correction
        self.steps_per_epoch = steps_per_epoch
        self.current_epoch = 0
        self._multiplier = multiplier
        self._momentum: Any = None

    def multiplier(self, epoch: float) -> float:
        """What the initial learning rate is multiplied by."""
        if callable(self._multiplier):
            return float(self._multiplier(epoch))
        return float(self._multiplier ** (epoch - self.start_epoch))

    def on_train_begin(self, logs: Any = None) -> None:
        """Finds how many batches an epoch has.

        Raises:
            ValueError: ``fit`` does not know; or the optimizer has a schedule of its own.
        """
        optimizer = self.model.optimizer
        schedule = getattr(optimizer, "_learning_rate", None)
        if isinstance(schedule, tf.keras.optimizers.schedules.LearningRateSchedule):
            raise ValueError(
                f"{type(self).__name__}: the optimizer's learning rate is a schedule of its own, "
                f"{type(schedule).__name__}; expected a number"
            )
        if not self.staircase and not self.steps_per_epoch:
            self.steps_per_epoch = self.params.get("steps")
            if not self.steps_per_epoch:
                raise ValueError(
                    f"steps_per_epoch: {type(self).__name__} needs it, since fit() does not know "
                    "how many batches an epoch has"
                )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch."""
        self.current_epoch = epoch

    def on_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Sets the learning rate, if it is time."""
        over = self.end_epoch is not None and self.current_epoch >= self.end_epoch
        if over or self.current_epoch < self.start_epoch:
            return
        if not self.staircase:
            assert self.steps_per_epoch is not None
            self._adjust(self.current_epoch + batch / self.steps_per_epoch)
        elif batch == 0:
            self._adjust(self.current_epoch)

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Gives the momentum back."""
        if self._momentum is not None:
            self.model.optimizer.momentum = self._momentum
            self._momentum = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds the learning rate to the epoch's metrics, as ``lr``."""
        if logs is not None:
            logs["lr"] = self.learning_rate()

    def learning_rate(self) -> float:
        """The optimizer's."""
        return float(value_of(tf.convert_to_tensor(self.model.optimizer.learning_rate)))

    def _adjust(self, epoch: float) -> None:
        optimizer = self.model.optimizer
        old = self.learning_rate()
        optimizer.learning_rate = self.initial_lr * self.multiplier(epoch)
        new = self.learning_rate()
        momentum = getattr(optimizer, "momentum", None)
        if not self.momentum_correction or momentum is None or old in (0.0, new):
            return
        if isinstance(momentum, float) and not self.model.run_eagerly:
            return
        before = float(value_of(tf.convert_to_tensor(momentum)))
        if before:
            self._momentum = before
            optimizer.momentum = before * new / old


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raises the learning rate from ``initial_lr / hvd.size()`` to ``initial_lr``, batch by batch.

    At epoch e (with a fraction) of w warm-up epochs on M ranks it is
    ``initial_lr / M * (e * (M - 1) / w + 1)``: Goyal et al. 2017, arXiv 1706.02677, section 2.2.

    Args:
        initial_lr: the learning rate after it.
        warmup_epochs: how many epochs it takes.
        momentum_correction: as for ``LearningRateScheduleCallback``.
        steps_per_epoch: batches; None: what ``fit`` says.
        verbose: 1 tells on rank 0 when it is over.
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        def multiplier(epoch: float) -> float:
            assert self.steps_per_epoch is not None
            # The last batch of an epoch has the rate of its end.
            reached = (epoch + 1 / self.steps_per_epoch) / warmup_epochs
            ranks = horovod_api.size()
            return float((reached * (ranks - 1) + 1) / ranks)

        super().__init__(
            initial_lr,
            multiplier,
            end_epoch=warmup_epochs,
            staircase=False,
            momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )
        self.verbose = verbose

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds the learning rate to the epoch's metrics; tells when the warm-up is over."""
        super().on_epoch_end(epoch, logs)
        if self.verbose and epoch + 1 == self.end_epoch and horovod_api.rank() == 0:
            rate = self.learning_rate()
            print(f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to {rate:g}.")
