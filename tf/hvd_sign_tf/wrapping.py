"""How a Keras optimizer is wrapped, so that it steps on what ranks have exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tensorflow as tf

from hvd_sign_tf.backend import horovod_api
from hvd_sign_tf.exchanges import Exchanges
from hvd_sign_tf.local import LocalVariables
from hvd_sign_tf.sign_optimizers import SignOptimizer
from hvd_sign_tf.state import STATE_FILE, ExchangeState


@dataclass
class Computed:
    """What was exchanged last.

    Attributes:
        pending: ``compute_gradients()`` has, and ``apply_gradients()`` has yet to apply it.
        counts: whether the step counts; None: it does.
        voted: whether ranks have voted, or it became means; None: they have.
    """

    pending: bool = False
    counts: tf.Tensor | None = None
    voted: tf.Tensor | None = None


class ExchangingOptimizer:
    """What a wrapped Keras optimizer gains; its class derives from one of ours and from its own.

    Attributes:
        exchange_state: what the exchange keeps from step to step; ``tf.train.Checkpoint`` finds it.
    """

    _hvd_sign: Exchanges
    _hvd_sign_local: LocalVariables
    _hvd_sign_computed: Computed
    exchange_state: ExchangeState
    iterations: Any

    @classmethod
    def from_config(cls, config: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """An optimizer as it was before it was wrapped."""
        wrapped: Any = cls.__bases__[1]
        return wrapped.from_config(config, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # The first thing that a LossScaleOptimizer does to what it wraps, in Keras 2 and 3.
        if name in ("_is_wrapped_by_loss_scale_optimizer", "loss_scale_factor"):
            raise ValueError(
                "optimizer: a LossScaleOptimizer around hvd.DistributedOptimizer would leave out "
                "this rank alone where its gradients overflow; wrap the other way round: "
                "hvd.DistributedOptimizer(LossScaleOptimizer(optimizer), ...)"
            )
        super().__setattr__(name, value)

    def _hvd_sign_step(
        self, gradients: list[Any], variables: list[Any], apply: Callable[[list[Any]], Any]
    ) -> None:
        """One pass: exchanges gradients, and applies what comes back if the step counts."""
        computed = self._hvd_sign_computed
        pending, computed.pending = computed.pending, False
        results = gradients if pending else self._hvd_sign_exchange(gradients, variables)
        counts = computed.counts
        if counts is None:
            apply(results)
            return

        def step() -> tf.Tensor:
            apply(results)
            return tf.constant(True)

        def skip() -> tf.Tensor:
            self.iterations.assign_add(1)  # as Horovod counts the passes of a step
            return tf.constant(False)

        tf.cond(counts, step, skip)

    def _hvd_sign_exchange(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        results, counts, voted = self._hvd_sign.exchange(
            gradients,
            variables,
            self._hvd_sign_local,
            self if self._hvd_sign_unscales() else None,
            inner_of(self),
        )
        self._hvd_sign_computed.counts, self._hvd_sign_computed.voted = counts, voted
        return results

    def _hvd_sign_unscales(self) -> bool:
        """Whether it divides what was exchanged by the loss's scale, which gradients carry."""
        return False

    def register_local_var(self, var: Any) -> None:
        """Keeps a variable's gradient to this rank, divided by their number as is asked for."""
        self._hvd_sign_local.register(var)

    def broadcast_exchange_state(self, root_rank: int) -> None:
        """Gives every rank one's number of steps, by which coins fall, and what its rule learned.

        What an algorithm keeps of each rank's own gradients stays that rank's.
        """
        common = self._hvd_sign.common_state()
        common = horovod_api.broadcast_object(common, root_rank, name="hvd_sign.common_state")
        self._hvd_sign.take_common_state(common)

    def save_assets(self, folder: str) -> None:
        """Keeps the exchange's state in a ``.keras`` file."""
        (Path(folder) / STATE_FILE).write_bytes(self.exchange_state.serialize())

    def load_assets(self, folder: str) -> None:
        """Takes the exchange's state from a ``.keras`` file."""
        file = Path(folder) / STATE_FILE
        if file.exists():
            self.exchange_state.deserialize(file.read_bytes())


class Keras2Optimizer(ExchangingOptimizer):
    """An optimizer of Keras 2, its legacy ones included."""

    @tf.autograph.experimental.do_not_convert
    def compute_gradients(self, loss: Any, var_list: Any, tape: Any = None) -> list[Any]:
        """Gradients as all ranks have decided them, in pairs with their variables.

        ``minimize`` begins so. The next ``apply_gradients()`` applies what it is given as it is,
        such as these after clipping; where a step has several passes, only in the last of them.

        Args:
            loss: to minimize: a function without arguments, or a tensor of ``tape``.
            var_list: of variables.
            tape: that recorded the loss; None: a new one.
        """
        pairs: list[Any] = self._compute_gradients(loss, var_list, tape=tape)
        return pairs

    @tf.autograph.experimental.do_not_convert
    def _compute_gradients(
        self, loss: Any, var_list: Any, grad_loss: Any = None, tape: Any = None
    ) -> list[Any]:
        wrapped: Any = super()
        if hasattr(wrapped, "_compute_gradients"):  # a legacy one's
            pairs = wrapped._compute_gradients(loss, var_list, grad_loss, tape=tape)
        else:
            pairs = wrapped.compute_gradients(loss, var_list, tape=tape)
        variables = [variable for _, variable in pairs]
        results = self._hvd_sign_compute([gradient for gradient, _ in pairs], variables)
        return list(zip(results, variables, strict=True))

    @tf.autograph.experimental.do_not_convert
    def get_gradients(self, loss: Any, params: Any) -> list[Any]:
        """``compute_gradients`` without the pairs, where the wrapped class has such a thing."""
        wrapped: Any = super()
        gradients: list[Any] = wrapped.get_gradients(loss, params)
        return self._hvd_sign_compute(gradients, params)

    def _hvd_sign_compute(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        results = self._hvd_sign_exchange(gradients, variables)
        self._hvd_sign_computed.pending = True
        return results

    @tf.autograph.experimental.do_not_convert
    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        """Exchanges gradients, then applies them as the wrapped class does."""
        pairs = list(grads_and_vars)
        variables = [variable for _, variable in pairs]
        if self._hvd_sign.conditional:
            with tf.init_scope():  # a branch of the graph may make none
                self._hvd_sign_build(variables)

        def apply(results: list[Any]) -> None:
            combined = list(zip(results, variables, strict=True))
            super(Keras2Optimizer, self).apply_gradients(  # type: ignore[misc]
                combined, *args, **kwargs
            )

        self._hvd_sign_step([gradient for gradient, _ in pairs], variables, apply)
        return self.iterations

    def _hvd_sign_build(self, variables: list[Any]) -> None:
        if hasattr(self, "build"):
            self.build(variables)
        else:
            self._create_all_weights(variables)  # type: ignore[attr-defined]


class Keras3Optimizer(ExchangingOptimizer):
    """An optimizer of Keras 3."""

    loss_scale_factor: float | None

    @tf.autograph.experimental.do_not_convert
    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Exchanges gradients, then applies them as the wrapped class does."""
        wrapped: Any = super()
        gradients = list(grads)
        if trainable_variables is not None:
            variables = list(trainable_variables)
        else:
            variables = list(self._trainable_variables)  # type: ignore[attr-defined]
        if not self.built:  # type: ignore[has-type]
            wrapped.build(variables)
            self.built = True

        def apply(results: list[Any]) -> None:
            wrapped.apply(results, variables)

        self._hvd_sign_step(gradients, variables, apply)

    def _hvd_sign_unscales(self) -> bool:
        # Keras 2 has done so before.
        return loss_scaling(self) or self.loss_scale_factor is not None


def inner_of(optimizer: Any) -> Any:
    """The optimizer that a LossScaleOptimizer lets step; else the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def loss_scaling(optimizer: Any) -> bool:
    """Whether it is a LossScaleOptimizer."""
    return isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)


def _family(optimizer: Any) -> type[ExchangingOptimizer]:
    """How an optimizer is wrapped. Raises TypeError where nobody knows."""
    known = [tf.keras.optimizers.Optimizer]
    legacy: Any = getattr(tf.keras.optimizers, "legacy", None)
    if hasattr(legacy, "Optimizer"):
        known.append(legacy.Optimizer)
    if not isinstance(optimizer, tuple(known)):
        raise TypeError(
            "optimizer: expected a Keras optimizer, such as tf.keras.optimizers.SGD(), got "
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    return Keras3Optimizer if hasattr(optimizer, "apply") else Keras2Optimizer


@cache
def _wrapped_class(base: Any, family: Any) -> type:
    """The class of a wrapped optimizer, which Keras' files know by the name of its own class."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    made = type(base.__name__, (family, base), names)
    package, registered, name = tf.keras.utils.get_registered_name(base).rpartition(">")
    if registered:
        register = tf.keras.utils.register_keras_serializable(package, name)
        for known in (made, base):  # the last one is what the name stands for
            register(known)
    return made


def wrap(optimizer: Any, exchanges: Exchanges) -> Any:
    """Lets an optimizer exchange its gradients from now on: its class becomes one derived from it.

    So its slots, its step count and whoever refers to it stay what they are.
    """
    base: Any = type(optimizer)
    family: Any = _family(optimizer)
    optimizer.__class__ = _wrapped_class(base, family)
    optimizer._hvd_sign = exchanges
    optimizer._hvd_sign_local = LocalVariables()
    optimizer._hvd_sign_computed = Computed()
    optimizer.exchange_state = ExchangeState(exchanges)
    inner, local = inner_of(optimizer), optimizer._hvd_sign_local
    computed = optimizer._hvd_sign_computed
    if exchanges.settings.votes and isinstance(inner, SignOptimizer):
        inner.take_verdicts(
            lambda variable: variable not in local and exchanges.votes_on(variable),
            lambda: computed.voted,
        )
    return optimizer


def checked(optimizer: Any) -> Any:
    """An optimizer that can be wrapped; with a loss scaler where ``Model.compile`` would add one.

    Raises:
        TypeError: no Keras optimizer.
        ValueError: it is wrapped already, or adds up gradients itself.
    """
    _family(optimizer)
    if isinstance(optimizer, ExchangingOptimizer):
        raise ValueError("optimizer: hvd.DistributedOptimizer has wrapped it already")
    passes = getattr(inner_of(optimizer), "gradient_accumulation_steps", None)
    if passes:
        raise ValueError(
            "optimizer: gradient_accumulation_steps would add up what ranks have agreed on; "
            f"expected None, and hvd.DistributedOptimizer(..., backward_passes_per_step={passes})"
        )
    mixed = tf.keras.mixed_precision
    if mixed.global_policy().name == "mixed_float16" and not loss_scaling(optimizer):
        return mixed.LossScaleOptimizer(optimizer)
    return optimizer
