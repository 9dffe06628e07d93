"""What computes with all ranks' tensors: allreduce and reducescatter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from hvd_sign.standalone.groups import ReduceScatters
from hvd_sign.standalone.operations import AllReduce, ReduceScatter
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.ranks import enqueue, ranks
from hvd_sign.standalone.reduce_op import ReduceOp, check_op, op_or_average
from hvd_sign_tf.arithmetic import divided
from hvd_sign_tf.bridge import name_in_graph
from hvd_sign_tf.errors import UnservedError
from hvd_sign_tf.mpi.compression import Compression
from hvd_sign_tf.mpi.gathering import allgather, grouped_allgather
from hvd_sign_tf.mpi.hosting import Array, any_length, as_tensors, collective, refusing


def allreduce(
    tensor: Any,
    average: bool | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
) -> Any:
    """Reduces a tensor over all ranks.

    As Horovod's, its gradient is reduced in the same way, and ``tf.IndexedSlices`` are gathered.

    Args:
        tensor: of the same shape and type on all ranks.
        average: older than ``op``: True is ``Average``, False ``Sum``.
        device_dense: without effect, as is ``device_sparse``: collectives run on the host.
        device_sparse: see there.
        compression: what is done to the tensor before and after.
        op: ``Average`` (default), ``Sum``, ``Min``, ``Max`` or ``Product``.
        prescale_factor: multiplies before.
        postscale_factor: multiplies after.
        name: of the call.
        process_set: the ranks that take part.
        ignore_name_scope: without effect: a call's name has no scope.

    Raises:
        ValueError: an operation that there is not; or, on all ranks alike, ranks that differ in
            operation, shape or type.
        TypeError: no numbers.
        RuntimeError: within XLA, or in a graph without an order.
    """
    (result,) = grouped_allreduce(
        [tensor],
        average,
        compression=compression,
        op=op,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        process_set=process_set,
        name=name,
    )
    return result


@tf.autograph.experimental.do_not_convert
def grouped_allreduce(
    tensors: Sequence[Any],
    average: bool | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
    name: str | None = None,
) -> list[Any]:
    """``allreduce`` of several tensors in one call."""
    sparse = [t for t in tensors if isinstance(t, tf.IndexedSlices)]
    with refusing(AllReduce, name, process_set):
        op = check_op(op_or_average(op, average))
        if sparse and op not in (ReduceOp.Average, ReduceOp.Sum):
            sentence = f"op: tf.IndexedSlices take Average and Sum, got {op.name}"
            raise UnservedError(None, None, sentence)
        if sparse and (prescale_factor, postscale_factor) != (1.0, 1.0):
            sentence = "prescale_factor, postscale_factor: tf.IndexedSlices take none"
            raise UnservedError(None, None, sentence)
    dense = [t for t in tensors if not isinstance(t, tf.IndexedSlices)]
    reduced = iter(
        _compressed(
            lambda given: _reduce(given, op, prescale_factor, postscale_factor, name, process_set),
            as_tensors(AllReduce, dense, name, process_set),
            compression,
        )
    )
    gathered = iter(_gather_slices(sparse, op, name, process_set))
    return [next(gathered if isinstance(t, tf.IndexedSlices) else reduced) for t in tensors]


def _compressed(
    operation: Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]],
    tensors: Sequence[tf.Tensor],
    compression: Any,
) -> list[tf.Tensor]:
    if not tensors:
        return []
    sent, contexts = zip(*(compression.compress(tensor) for tensor in tensors), strict=True)
    return [
        compression.decompress(result, context)
        for result, context in zip(operation(sent), contexts, strict=True)
    ]


def _reduce(
    tensors: Sequence[Any],
    op: ReduceOp,
    prescale: float,
    postscale: float,
    name: str | None,
    process_set: ProcessSet,
) -> Sequence[tf.Tensor]:
    @tf.custom_gradient
    def reduce(*sources: tf.Tensor) -> Any:
        reduced = collective(
            AllReduce,
            lambda comm, arrays: AllReduce(comm, arrays, op, prescale, postscale),
            sources,
            [source.dtype for source in sources],
            [source.shape for source in sources],
            name_in_graph(AllReduce.kind, name, sources[0]),
            process_set,
        )

        def grad(*upstream: Any) -> Sequence[tf.Tensor]:
            return _reduce(upstream, op, prescale, postscale, None, process_set)

        return reduced, grad

    return list(reduce(*[tf.convert_to_tensor(tensor) for tensor in tensors]))


def _gather_slices(
    slices: Sequence[tf.IndexedSlices], op: ReduceOp, name: str | None, process_set: ProcessSet
) -> list[tf.IndexedSlices]:
    parts = [part for s in slices for part in (s.values, s.indices)]
    gathered = grouped_allgather(parts, name and f"{name}.slices", process_set=process_set)
    joined = [
        tf.IndexedSlices(values, indices, dense_shape=own.dense_shape)
        for own, values, indices in zip(slices, gathered[::2], gathered[1::2], strict=True)
    ]
    if op is not ReduceOp.Average:
        return joined
    # Their values are not added up yet: an integer's mean is only found by fractions.
    divisor = len(ranks().members(process_set))
    return [divided(all_slices, divisor) for all_slices in joined]


def reducescatter(
    tensor: Any,
    device_dense: str = "",
    compression: Any = Compression.none,
    op: Any = ReduceOp.Average,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> tf.Tensor:
    """Reduces a tensor over all ranks, and gives each its share of the first dimension.

    As Horovod's, its gradient is gathered, and times the number of ranks under ``Sum``.

    Args:
        tensor: [n, ...], of the same shape and type on all ranks.
        device_dense: without effect: collectives run on the host.
        compression: what is done to the tensor before and after.
        op: ``Average`` or ``Sum``.
        name: of the call.
        process_set: the ranks that take part.
        ignore_name_scope: without effect: a call's name has no scope.
        prescale_factor: multiplies before.
        postscale_factor: multiplies after.

    Returns:
        [n / ranks, ...], or one row more on the first n mod ranks of them.

    Raises:
        ValueError: a scalar, or another operation; or, on all ranks alike, ranks that differ in
            operation, shape or type.
        RuntimeError: within XLA, or in a graph without an order.
    """
    (share,) = grouped_reducescatter(
        [tensor], "", compression, op, process_set, prescale_factor, postscale_factor, name
    )
    return share


@tf.autograph.experimental.do_not_convert
def grouped_reducescatter(
    tensors: Sequence[Any],
    device_dense: str = "",
    compression: Any = Compression.none,
    op: Any = ReduceOp.Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
) -> list[tf.Tensor]:
    """``reducescatter`` of several tensors in one call."""

    def make(comm: Any, arrays: list[Array]) -> ReduceScatters:
        members = [
            ReduceScatter(comm, array, op, prescale_factor, postscale_factor) for array in arrays
        ]
        return ReduceScatters(comm, members)

    @tf.custom_gradient
    def scatter(*sources: tf.Tensor) -> Any:
        shares = collective(
            ReduceScatters,
            make,
            sources,
            [source.dtype for source in sources],
            [any_length(source) for source in sources],
            name_in_graph(ReduceScatter.kind, name, sources[0]),
            process_set,
        )

        def grad(*upstream: Any) -> list[tf.Tensor]:
            factor = prescale_factor * postscale_factor
            if op == ReduceOp.Sum:
                factor *= len(process_set.members())
            scaled = [tf.convert_to_tensor(g) for g in upstream]
            scaled = [g * tf.cast(factor, g.dtype) for g in scaled]
            return [allgather(g, process_set=process_set) for g in scaled]

        return shares, grad

    given = as_tensors(ReduceScatter, tensors, name, process_set)
    return _compressed(lambda sent: list(scatter(*sent)), given, compression)


_reductions: Counter[tuple[int, ...]] = Counter()


Reduction = Callable[[list[Array]], list[Array]]
"""From arrays to the reduced ones, in one call."""


def gradient_reduction(settings: Any) -> Callable[[], Reduction]:
    """What all ranks do with a step's gradients where nothing is voted on.

    Args:
        settings: a ``hvd_sign_tf.settings.ExchangeSettings``.

    Returns:
        Makes the reduction, to be called once all ranks have come to do so: they number theirs.

    Raises:
        ValueError: an operation that there is not, or one that ``predivide`` has no meaning for.
    """
    op = check_op(settings.op)
    if settings.predivide != 1.0 and op is not ReduceOp.Average:
        raise ValueError(f"gradient_predivide_factor: only Average has one, got op={op.name}")

    def make() -> Reduction:
        members = tuple(settings.process_set.ranks)
        number = _reductions[members]
        _reductions[members] += 1
        return partial(_reduce_gradients, settings, op, f"gradients.{number}")

    return make


def _reduce_gradients(settings: Any, op: ReduceOp, name: str, arrays: list[Array]) -> list[Array]:
    before, after = 1.0 / settings.predivide, settings.predivide
    if settings.average:
        after /= settings.passes

    def summed(sent: list[Array]) -> list[Array]:
        handle = enqueue(
            AllReduce,
            lambda comm: AllReduce(comm, sent, op, before, after),
            name,
            settings.process_set,
        )
        reduced: list[Array] = handle.result()
        return reduced

    if settings.compression is Compression.none:
        return summed(arrays)
    with tf.device("/cpu:0"):
        tensors = [tf.convert_to_tensor(array) for array in arrays]
        results = _compressed(
            lambda sent: summed([np.asarray(t) for t in sent]), tensors, settings.compression
        )
    return [np.asarray(result) for result in results]
