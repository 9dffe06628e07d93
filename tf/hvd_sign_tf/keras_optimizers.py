"""What a class of optimizers derives from, with one face for Keras 2 and Keras 3."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

_Optimizer: Any = tf.keras.optimizers.Optimizer


class SteppingOptimizer(_Optimizer):
    """Steps by p = p - lr V, where ``decided()`` makes V of the gradients; Keras does all else.

    Before it that is clipping, weight decay and accumulation, and after it constraints and moving
    averages.
    """

    @abstractmethod
    def begin(self, variables: Sequence[Any]) -> None:
        """Called once with all variables, to make the optimizer's own with ``add_variable``."""

    @abstractmethod
    def decided(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """What is stepped by, of some of the variables.

        Args:
            gradients: tensors or ``tf.IndexedSlices``.
            variables: theirs.
        """


class Keras2Optimizer(SteppingOptimizer):
    """Of Keras 2."""

    def __init__(self, learning_rate: Any, name: str | None, **keras: Any) -> None:
        super().__init__(name=name or type(self).__name__, **keras)
        self._learning_rate = self._build_learning_rate(learning_rate)

    def build(self, var_list: Sequence[Any]) -> None:
        """Makes the optimizer's variables."""
        super().build(var_list)
        if not getattr(self, "_built", False):
            self.begin(var_list)
            self._built = True

    @tf.autograph.experimental.do_not_convert
    def _internal_apply_gradients(self, grads_and_vars: Any) -> Any:
        gradients, variables = zip(*grads_and_vars, strict=True)
        pairs = zip(self.decided(gradients, variables), variables, strict=True)
        return super()._internal_apply_gradients(list(pairs))

    def position(self, variable: Any) -> int:
        """Of a variable among all."""
        return int(self._index_dict[self._var_key(variable)])

    @tf.autograph.experimental.do_not_convert
    def update_step(self, gradient: Any, variable: Any) -> None:
        """Steps on what was decided."""
        variable.assign_sub(tf.cast(self.learning_rate, variable.dtype) * gradient)

    def get_config(self) -> dict[str, Any]:
        """With the learning rate."""
        rate = self._serialize_hyperparameter(self._learning_rate)
        return {**super().get_config(), "learning_rate": rate}


class Keras3Optimizer(SteppingOptimizer):
    """Of Keras 3."""

    def __init__(self, learning_rate: Any, name: str | None, **keras: Any) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **keras)

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the optimizer's variables."""
        if not self.built:
            super().build(variables)
            self.begin(variables)

    @tf.autograph.experimental.do_not_convert
    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> Any:
        decided = self.decided(grads, trainable_variables)
        return super()._backend_update_step(decided, trainable_variables, learning_rate)

    def position(self, variable: Any) -> int:
        """Of a variable among all."""
        return int(self._get_variable_index(variable))

    @tf.autograph.experimental.do_not_convert
    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Steps on what was decided."""
        self.assign_sub(variable, tf.cast(learning_rate, variable.dtype) * gradient)


KerasOptimizer: Any = Keras3Optimizer if hasattr(_Optimizer, "apply") else Keras2Optimizer
"""The one of the Keras that TensorFlow has."""
