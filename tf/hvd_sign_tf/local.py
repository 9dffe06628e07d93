"""Variables that each rank has for itself, as Horovod's partial tapes and optimizers know them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf


class LocalVariables:
    """Some variables, of TensorFlow or Keras, told apart by what they are and not by their values.

    Args:
        variables: the first of them.
    """

    def __init__(self, variables: Iterable[Any] = ()) -> None:
        self._known: dict[int, Any] = {}
        for variable in variables:
            self.register(variable)

    def register(self, variable: Any) -> None:
        """Adds one."""
        inner = _inner(variable)
        self._known[id(inner)] = inner

    def __contains__(self, variable: Any) -> bool:
        return id(_inner(variable)) in self._known


def _inner(variable: Any) -> Any:
    """The ``tf.Variable`` of one of Keras 3's."""
    value = getattr(variable, "value", None)
    return variable if value is None or callable(value) else value


def variables_of(layers: Any) -> list[Any]:
    """The trainable variables of local layers.

    Args:
        layers: one layer of Keras, several, or None.

    Raises:
        ValueError: something else.
    """
    kind: Any = tf.keras.layers.Layer
    found = [] if layers is None else [layers] if isinstance(layers, kind) else list(layers)
    for layer in found:
        if not isinstance(layer, kind):
            raise ValueError(f"local_layers: expected layers of Keras, got {layer!r}")
    return [variable for layer in found for variable in layer.trainable_weights]
