"""From TensorFlow's graphs to the host and back, without copies.

In a graph ``tf.numpy_function`` hands a tensor's own memory to Python, and takes back memory that
is a tensor's; only what numpy owns is copied. So results have tensors of their own from the
beginning, which the host fills. Callbacks keep state, so that a ``tf.function`` runs them in the
order in which they are written, the same on all ranks.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

Array = npt.NDArray[Any]
Work = Callable[[Sequence[Array], Sequence[Array]], None]
"""Reads the first arrays and fills the second; all at least one-dimensional."""

NO_XLA = (
    "XLA cannot compile what the host does, such as votes: use tf.function without "
    "jit_compile=True, or model.compile(..., jit_compile=False), or give model.fit the callback "
    "hvd.keras.callbacks.BroadcastGlobalVariablesCallback(0), which switches it off"
)
NO_GRAPH = (
    "operations in a tf.compat.v1 graph or a tf.data pipeline have no order that is the same on "
    "all ranks: expected eager mode or a tf.function"
)


def check_context(who: str) -> None:
    """Raises RuntimeError where the host cannot be called, or not in the same order everywhere."""
    if tf.executing_eagerly():
        return
    graph = tf.compat.v1.get_default_graph()
    if GraphOrParentsInXlaContext(graph):
        raise RuntimeError(f"{who}: {NO_XLA}")
    if in_old_graph() or graph.name.startswith("Dataset_"):
        raise RuntimeError(f"{who}: {NO_GRAPH}")


def in_old_graph() -> bool:
    """Whether operations become nodes of a ``tf.compat.v1`` graph, which sessions run."""
    if tf.executing_eagerly():
        return False
    return not isinstance(tf.compat.v1.get_default_graph(), tf.__internal__.FuncGraph)


def name_in_graph(kind: str, name: str | None, tensor: Any) -> str | None:
    """The name of an operation: its own, or in a graph, where it runs often, its tensor's."""
    if name is None and not tf.executing_eagerly():
        # What comes from outside has none before it is in the graph.
        named = tensor if hasattr(tensor, "name") else tf.identity(tensor)
        return f"{kind}.{legal(named.name)}"
    return name


def legal(name: str) -> str:
    """A name without characters that graphs do not take."""
    return re.sub("[^a-zA-Z0-9_]", "_", name)


def empty(shape: Any, dtype: Any) -> tf.Tensor:
    """A tensor whose memory nobody has written yet.

    Scalars become one-dimensional, since Python sees those as numbers.

    Args:
        shape: a tuple, or a tensor where it is not known before the graph runs.
        dtype: the type, or its name.
    """
    if isinstance(shape, tuple) and not shape:
        shape = (1,)
    with tf.device("/cpu:0"):
        return tf.raw_ops.Empty(shape=shape, dtype=tf.as_dtype(dtype), init=False)


def empty_like(tensor: tf.Tensor) -> tf.Tensor:
    """Such a tensor of another one's shape and type; at least one-dimensional."""
    known = tensor.shape.is_fully_defined()
    return empty(tuple(tensor.shape) if known else tf.shape(tensor), tensor.dtype)


def at_least_1d(tensor: tf.Tensor) -> tf.Tensor:
    """A tensor that Python sees as an array: a scalar becomes one-dimensional."""
    if tensor.shape.rank is not None:
        return tf.reshape(tensor, [1]) if tensor.shape.rank == 0 else tensor
    shape = tf.shape(tensor)
    return tf.reshape(tensor, tf.cond(tf.size(shape) == 0, lambda: tf.constant([1]), lambda: shape))


def shaped_like(result: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
    """A result in the shape that the tensor had before it was at least one-dimensional."""
    if tensor.shape.is_fully_defined():
        return tf.reshape(result, tensor.shape)
    shaped = tf.reshape(result, tf.shape(tensor))
    shaped.set_shape(tensor.shape)
    return shaped


def on_host(
    work: Work, inputs: Sequence[tf.Tensor], outputs: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Runs ``work`` on the host in a graph; returns the outputs as it leaves them.

    Args:
        work: called once every time the graph runs.
        inputs: at least one-dimensional.
        outputs: made by ``empty`` or ``empty_like``.
    """
    count = len(inputs)

    def run(*arrays: Array) -> tuple[Array, ...]:
        work(arrays[:count], arrays[count:])
        return arrays[count:]

    with tf.device("/cpu:0"):
        results = tf.numpy_function(run, [*inputs, *outputs], [t.dtype for t in outputs])
    return tf.nest.flatten(results) if outputs else []  # eagerly, a single one is no list


_tickets = itertools.count()
_waiting: dict[int, tuple[Work, list[BaseException]]] = {}


def call(work: Work, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Runs ``work`` on the host, from tensors to others of the same shapes and types.

    Eagerly, what it raises is raised; in a graph it becomes TensorFlow's error, with its text.
    """
    arrays = [at_least_1d(tensor) for tensor in tensors]
    if tf.executing_eagerly():
        results = _now(work, arrays)
    else:
        results = on_host(work, arrays, [empty_like(array) for array in arrays])
    return [shaped_like(r, t) for r, t in zip(results, tensors, strict=True)]


def _now(work: Work, arrays: list[tf.Tensor]) -> list[tf.Tensor]:
    ticket, errors = next(_tickets), list[BaseException]()
    _waiting[ticket] = work, errors
    try:
        return list(_eager_call(tf.constant([ticket], tf.int64), arrays))
    except tf.errors.OpError:
        if errors:
            raise errors[0] from None
        raise
    finally:
        del _waiting[ticket]


@tf.function(reduce_retracing=True, autograph=False)
def _eager_call(ticket: tf.Tensor, arrays: list[tf.Tensor]) -> list[tf.Tensor]:
    def work(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        number, *signals = inputs
        wanted, errors = _waiting[int(number[0])]
        try:
            wanted(signals, outputs)
        except BaseException as error:
            errors.append(error)
            raise

    # Shapes, which are not part of the trace, may have other numbers of dimensions next time.
    return on_host(work, [ticket, *arrays], [empty_like(array) for array in arrays])
