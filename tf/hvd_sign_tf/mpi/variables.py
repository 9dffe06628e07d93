"""Broadcasts of variables: tf.Variable, and Keras 3's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from hvd_sign.standalone.groups import Broadcasts
from hvd_sign.standalone.objects import place
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign_tf.bridge import name_in_graph
from hvd_sign_tf.mpi.hosting import as_tensors, collective

BUCKET_BYTES = 64 * 2**20
"""Of variables that are broadcast in one call, and copied meanwhile."""


@tf.autograph.experimental.do_not_convert
def broadcast_variables(
    variables: Sequence[Any],
    root_rank: int,
    process_set: ProcessSet = global_process_set,
    inplace: bool = False,
) -> None:
    """Gives every rank one rank's values of some variables.

    Args:
        variables: the same ones, in the same order, on all ranks.
        root_rank: whose values, among all ranks.
        process_set: the ranks that take part.
        inplace: without effect: values pass through the host.

    Raises:
        ValueError: the root is none of them; or, on all ranks alike, ranks that differ in names,
            shapes or types.
        RuntimeError: within XLA, or in a graph without an order.
    """
    for bucket in _buckets(list(variables)):
        broadcast_(bucket, root_rank, process_set=process_set)


@tf.autograph.experimental.do_not_convert
def broadcast_(
    variables: Sequence[Any],
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> list[tf.Tensor]:
    """``broadcast_variables`` in one call; returns the values."""
    names = [getattr(variable, "path", variable.name) for variable in variables]
    values = as_tensors(Broadcasts, variables, name, process_set)
    if not values:
        return []
    received = collective(
        Broadcasts,
        lambda comm, arrays: Broadcasts(comm, arrays, place(root_rank, process_set), names),
        values,
        [value.dtype for value in values],
        [value.shape for value in values],
        name_in_graph(Broadcasts.kind, name, values[0]),
        process_set,
    )
    for variable, value in zip(variables, received, strict=True):
        variable.assign(value)
    return received


def _buckets(variables: list[Any]) -> Iterator[list[Any]]:
    """Variables in order, in lists of about ``BUCKET_BYTES``."""
    bucket: list[Any] = []
    size = 0
    for variable in variables:
        bucket.append(variable)
        size += math.prod(variable.shape) * tf.as_dtype(variable.dtype).size
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    yield bucket
