"""What moves tensors between ranks without computing: allgather, broadcast, alltoall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hvd_sign.standalone.groups import AllGathers
from hvd_sign.standalone.objects import place
from hvd_sign.standalone.operations import AllGather, AllReduce, AllToAll, Broadcast
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.ranks import rank
from hvd_sign.standalone.reduce_op import ReduceOp
from hvd_sign_tf.bridge import name_in_graph
from hvd_sign_tf.mpi.hosting import any_length, as_tensors, collective


def allgather(
    tensor: Any,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> tf.Tensor:
    """Joins the ranks' tensors along the first dimension, in which they may differ.

    As Horovod's, its gradient is the ranks' mean, of which each takes its own rows.

    Args:
        tensor: [n, ...].
        name: of the call.
        ignore_name_scope: without effect: a call's name has no scope.
        process_set: the ranks that take part.

    Returns:
        [sum of all ranks' n, ...].

    Raises:
        ValueError: a scalar; or, on all ranks alike, types or other dimensions that differ.
        RuntimeError: within XLA, or in a graph without an order.
    """
    return grouped_allgather([tensor], name, ignore_name_scope, process_set)[0]


@tf.autograph.experimental.do_not_convert
def grouped_allgather(
    tensors: Sequence[Any],
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> list[tf.Tensor]:
    """``allgather`` of several tensors in one call."""
    if not tensors:
        return []

    @tf.custom_gradient
    def gather(*sources: tf.Tensor) -> Any:
        joined = collective(
            AllGathers,
            lambda comm, arrays: AllGathers(comm, [AllGather(comm, array) for array in arrays]),
            sources,
            [source.dtype for source in sources],
            [any_length(source) for source in sources],
            name_in_graph(AllGather.kind, name, sources[0]),
            process_set,
        )

        def grad(*upstream: Any) -> list[tf.Tensor]:
            return [
                _own_rows(gradient, source, process_set)
                for gradient, source in zip(upstream, sources, strict=True)
            ]

        return joined, grad

    return list(gather(*as_tensors(AllGather, tensors, name, process_set)))


def _own_rows(gradient: Any, source: tf.Tensor, process_set: ProcessSet) -> tf.Tensor:
    rows = tf.shape(source)[:1]
    with tf.device("/cpu:0"):
        everyones = allgather(rows, process_set=process_set)
    before = tf.reduce_sum(everyones[: process_set.rank()])
    mean = averaged(gradient, process_set)
    return tf.reshape(mean[before : before + rows[0]], tf.shape(source))


def averaged(gradient: Any, process_set: ProcessSet) -> tf.Tensor:
    """The ranks' mean of a gradient."""
    dense = tf.convert_to_tensor(gradient)
    (mean,) = collective(
        AllReduce,
        lambda comm, arrays: AllReduce(comm, arrays, ReduceOp.Average),
        [dense],
        [dense.dtype],
        [dense.shape],
        name_in_graph(AllReduce.kind, None, dense),
        process_set,
    )
    return mean


@tf.autograph.experimental.do_not_convert
def broadcast(
    tensor: Any,
    root_rank: int,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> tf.Tensor:
    """Gives every rank the tensor of one.

    As Horovod's, its gradient is the ranks' mean on the root, and zero elsewhere.

    Args:
        tensor: of the same shape and type on all ranks.
        root_rank: whose, among all ranks.
        name: of the call.
        ignore_name_scope: without effect: a call's name has no scope.
        process_set: the ranks that take part.

    Raises:
        ValueError: the root is none of them; or, on all ranks alike, they differ in root, shape or
            type.
        RuntimeError: within XLA, or in a graph without an order.
    """

    @tf.custom_gradient
    def send(source: tf.Tensor) -> Any:
        (received,) = collective(
            Broadcast,
            lambda comm, arrays: Broadcast(comm, arrays[0], place(root_rank, process_set)),
            [source],
            [source.dtype],
            [source.shape],
            name_in_graph(Broadcast.kind, name, source),
            process_set,
        )

        def grad(upstream: Any) -> tf.Tensor:
            mean = averaged(upstream, process_set)
            return mean if rank() == root_rank else tf.zeros_like(mean)

        return received, grad

    return send(*as_tensors(Broadcast, [tensor], name, process_set))


@tf.autograph.experimental.do_not_convert
def alltoall(
    tensor: Any,
    splits: Any = None,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Sends rows of a tensor to each rank, and joins what comes.

    Args:
        tensor: [n, ...].
        splits: int[number of ranks], how many rows go to each; None: equal parts.
        name: of the call.
        ignore_name_scope: without effect: a call's name has no scope.
        process_set: the ranks that take part.

    Returns:
        What came, in order of ranks; with ``splits`` also how many rows from each: int32[ranks].

    Raises:
        ValueError: rows that cannot be split so; or, on all ranks alike, types or other dimensions
            that differ.
        RuntimeError: within XLA, or in a graph without an order.
    """
    values = [tensor] if splits is None else [tensor, splits]
    sent, *given = as_tensors(AllToAll, values, name, process_set)

    @tf.custom_gradient
    def exchange(source: tf.Tensor) -> Any:
        received, rows = collective(
            AllToAll,
            lambda comm, arrays: AllToAll(comm, arrays[0], *(a.tolist() for a in arrays[1:])),
            [source, *given],
            [source.dtype, tf.int32],
            [any_length(source), [process_set.size()]],
            name_in_graph(AllToAll.kind, name, source),
            process_set,
        )

        def grad(upstream: Any, *_: Any) -> tf.Tensor:
            back, _ = alltoall(upstream, rows, process_set=process_set)
            return tf.reshape(back, tf.shape(source))

        return (received, rows), grad

    received, rows = exchange(sent)
    return received if splits is None else (received, rows)
