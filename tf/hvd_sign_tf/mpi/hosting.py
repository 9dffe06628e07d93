"""How an operation of this package runs: on the host, at once or whenever its graph does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from hvd_sign.standalone.operations import Collective
from hvd_sign.standalone.process_sets import ProcessSet
from hvd_sign.standalone.ranks import enqueue, ranks
from hvd_sign_tf.bridge import check_context, name_in_graph
from hvd_sign_tf.errors import told_as_horovod

Array = npt.NDArray[Any]
Kind = TypeVar("Kind", bound=Collective)


def on_host(
    work: Callable[[list[Array]], Sequence[Any]],
    inputs: Sequence[tf.Tensor],
    dtypes: Sequence[Any],
    shapes: Sequence[Sequence[int | None] | tf.TensorShape | None],
) -> list[tf.Tensor]:
    """Runs ``work`` from arrays to arrays: now, or each time the graph runs.

    Args:
        work: gets the inputs' values, which it must not modify; returns one array an output.
        inputs: any tensors.
        dtypes: of the outputs.
        shapes: of the outputs, as far as they are known before the graph runs.
    """
    if tf.executing_eagerly():
        results = work([np.asarray(tensor) for tensor in inputs])
        return [tf.convert_to_tensor(r, d) for r, d in zip(results, dtypes, strict=True)]

    def run(*arrays: Any) -> list[Any]:
        return list(work([np.asarray(array) for array in arrays]))

    with tf.device("/cpu:0"):
        outputs = tf.numpy_function(run, list(inputs), list(dtypes))
    for output, shape in zip(outputs, shapes, strict=True):
        output.set_shape(shape)
    return list(outputs)


def collective(
    kind: type[Kind],
    make: Callable[[Any, list[Array]], Kind],
    inputs: Sequence[tf.Tensor],
    dtypes: Sequence[Any],
    shapes: Sequence[Any],
    name: str | None,
    process_set: ProcessSet,
) -> list[tf.Tensor]:
    """A collective of all ranks of a process set, on tensors.

    Args:
        kind: of collective.
        make: makes it, given a communicator and the inputs' values.
        inputs: its tensors.
        dtypes: of its results.
        shapes: of its results, as far as they are known before.
        name: of the call, or None.
        process_set: the ranks that take part.

    Raises:
        ValueError: it is refused, on this rank or another; so is TypeError.
        RuntimeError: within XLA, or in a graph without an order.
    """
    check_context(kind.kind)

    def work(arrays: list[Array]) -> Sequence[Any]:
        handle = enqueue(kind, lambda communicator: make(communicator, arrays), name, process_set)
        result: Any = handle.result()
        return result if isinstance(result, (list, tuple)) else [result]

    with told_as_horovod():
        return on_host(work, inputs, dtypes, shapes)


@contextmanager
def refusing(kind: type[Collective], name: str | None, process_set: ProcessSet) -> Iterator[None]:
    """What is refused within it ends the other ranks' calls of that name too.

    Raises:
        ValueError: ``init()`` was not called, or this process is none of the process set's.
    """
    with told_as_horovod(), ranks().stream(process_set).refusing(kind.kind, name):
        yield


def as_tensors(
    kind: type[Collective], values: Sequence[Any], name: str | None, process_set: ProcessSet
) -> list[tf.Tensor]:
    """The tensors of a call. Raises TypeError or ValueError: something is none."""
    if values and tf.is_tensor(values[0]):
        name = name_in_graph(kind.kind, name, values[0])
    with refusing(kind, name, process_set):
        return [tf.convert_to_tensor(value) for value in values]


def any_length(tensor: tf.Tensor) -> tf.TensorShape:
    """A tensor's shape, its first dimension unknown."""
    if not tensor.shape.rank:
        return tf.TensorShape(None)
    return tf.TensorShape([None, *tensor.shape[1:]])
