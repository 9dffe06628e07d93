"""``allreduce`` and ``grouped_allreduce``, which take a vote rule as ``op`` beside the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from hvd_sign.core.buckets import check_dtype
from hvd_sign.core.process import check_not_forked
from hvd_sign.devices import HOST, Operand
from hvd_sign.frontend.arguments import call_options, labels, number, op_of_call
from hvd_sign.runtime.named import ALLREDUCE, Tensor
from hvd_sign.transports.communication import ALLREDUCE as DENSE_ALLREDUCE
from hvd_sign.transports.communication import GROUPED_ALLREDUCE
from hvd_sign.votes import is_vote_rule, make_rule
from hvd_sign_tf import bridge
from hvd_sign_tf.backend import backend, horovod_api
from hvd_sign_tf.errors import told_as_horovod
from hvd_sign_tf.sign_compression import Compression

Array = npt.NDArray[Any]


def _vote(
    tensors: Sequence[Any],
    op: object,
    average: bool | None,
    name: str | None,
    prescale_factor: float,
    postscale_factor: float,
    process_set: Any,
    given: dict[str, Any],
) -> list[tf.Tensor]:
    first = next(iter(tensors), None) if isinstance(tensors, (list, tuple)) else None
    if isinstance(first, (tf.Tensor, tf.Variable)):
        name = bridge.name_in_graph(ALLREDUCE, name, first)
    with backend.adhoc(process_set).refusing(ALLREDUCE, name):
        bridge.check_context("allreduce")
        rule = make_rule(op)
        options = call_options(given)
        if average is not None:
            raise ValueError(f"average: not allowed together with op, got {average!r}")
        before = number("prescale_factor", prescale_factor)
        after = number("postscale_factor", postscale_factor)
        if not isinstance(tensors, Iterable):
            raise TypeError(f"tensors: expected a list of them, got {tensors!r}")
        tensors = list(tensors)
        if not tensors:
            raise ValueError("tensors: expected at least one, got none")
        signals = []
        for label, tensor in zip(labels(name, len(tensors)), tensors, strict=True):
            signal = _dense(f"allreduce {label!r}", tensor)
            check_dtype(f"allreduce {label!r}", signal.dtype.name)
            if before != 1.0:
                signal = signal * tf.cast(before, signal.dtype)
            signals.append(signal)
    name = bridge.name_in_graph(ALLREDUCE, name, signals[0])
    scalars = [signal.shape.rank == 0 for signal in signals]

    def work(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        asked = []
        called = labels(name, len(inputs))
        for label, scalar, signal, out in zip(called, scalars, inputs, outputs, strict=True):
            shape = () if scalar else signal.shape
            operand = Operand(HOST, signal, out, after)
            asked.append(Tensor(label, shape, signal.dtype.name, operand))
        backend.adhoc(process_set).vote(asked, rule, options, name=name).wait()

    return bridge.call(work, signals)


def _dense(who: str, tensor: Any) -> tf.Tensor:
    if isinstance(tensor, (tf.IndexedSlices, tf.SparseTensor, tf.RaggedTensor)):
        raise TypeError(f"{who}: a vote needs a dense tensor, got tf.{type(tensor).__name__}")
    return tf.convert_to_tensor(tensor)


def _chosen(
    compression: Any, op: Any, name: str | None, process_set: Any, given: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The operation that a call's arguments ask for, and its keywords; all ranks hear of errors."""
    return op_of_call(
        compression,
        op,
        Compression.none,
        given,
        lambda: backend.adhoc(process_set).refusing(ALLREDUCE, name),
    )


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
    process_set: Any = horovod_api.global_process_set,
    ignore_name_scope: bool = False,
    **vote: Any,
) -> tf.Tensor:
    """Horovod's ``allreduce``, or with ``op=hvd.MajorityVote`` a vote of all ranks.

    ``compression=hvd.Compression.sign`` or its like, such as ``hvd.Compression.signum()``, asks for
    a vote too. Eagerly or within a ``tf.function``;
    there an unnamed vote is called after its tensor.

    A vote's own keywords are those of ``hvd_sign.VoteOptions``, which documents them: ``exchange``,
    ``local``, ``fallback``, ``ties``, ``seed``, ``scale``, and ``algorithm``, which keeps its state
    under the call's ``name``.

    Returns:
        For a vote: the verdict in {-1, 0, +1}, times the scale and ``postscale_factor``, in the
        tensor's shape and type. No gradient flows through it: its derivative is zero almost
        everywhere.

    Raises:
        TypeError: a vote on an element type other than fp32, fp64, fp16 and bf16.
        ValueError: unknown options; options without a vote; a name already under way; and, on all
            ranks alike, ranks that differ in shape, type or options.
        RuntimeError: within XLA, or in a graph without an order.
    """
    with told_as_horovod():
        op, vote = _chosen(compression, op, name, process_set, vote)
    if not is_vote_rule(op):
        check_not_forked()
        with backend.dense(DENSE_ALLREDUCE, process_set, name):
            result: tf.Tensor = horovod_api.allreduce(
                tensor,
                average,
                device_dense,
                device_sparse,
                compression,
                op,
                prescale_factor,
                postscale_factor,
                name,
                process_set,
                ignore_name_scope,
            )
        return result
    with told_as_horovod():
        (verdict,) = _vote(
            [tensor], op, average, name, prescale_factor, postscale_factor, process_set, vote
        )
    return verdict


def grouped_allreduce(
    tensors: Sequence[Any],
    average: bool | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = horovod_api.global_process_set,
    ignore_name_scope: bool = False,
    name: str | None = None,
    **vote: Any,
) -> list[tf.Tensor]:
    """Horovod's ``grouped_allreduce``, or one vote on several tensors: see ``allreduce``."""
    with told_as_horovod():
        op, vote = _chosen(compression, op, name, process_set, vote)
    if not is_vote_rule(op):
        check_not_forked()
        with backend.dense(GROUPED_ALLREDUCE, process_set, name):
            reduced = horovod_api.grouped_allreduce(
                tensors,
                average,
                device_dense,
                device_sparse,
                compression,
                op,
                prescale_factor,
                postscale_factor,
                process_set,
                ignore_name_scope,
                name,
            )
        return list(reduced)
    with told_as_horovod():
        return _vote(
            tensors, op, average, name, prescale_factor, postscale_factor, process_set, vote
        )
