"""``allreduce`` and ``grouped_allreduce``, which take a vote rule as ``op`` beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from hvd_sign.adhoc import ALLREDUCE, Tensor
from hvd_sign.asking import call_options, labels, op_of, refuse_vote_options
from hvd_sign.ballots import HostVoter
from hvd_sign.collectives import check_dtype
from hvd_sign.votes import is_vote_rule, make_rule
from hvd_sign_tf import bridge
from hvd_sign_tf.sign_compression import Compression
from hvd_sign_tf.worlds import job, plain

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
    bridge.check_context("allreduce")
    if tensors and tf.is_tensor(tensors[0]) and not isinstance(tensors[0], tf.IndexedSlices):
        name = bridge.name_in_graph(ALLREDUCE, name, tensors[0])
    with job.adhoc(process_set).refusing(ALLREDUCE, name):
        rule = make_rule(op)
        options = call_options(given)
        if average is not None:
            raise ValueError(f"average: not allowed together with op, got {average!r}")
        if not tensors:
            raise ValueError("tensors: expected at least one, got none")
        signals = []
        for label, tensor in zip(labels(name, len(tensors)), tensors, strict=True):
            if isinstance(tensor, tf.IndexedSlices):
                raise TypeError(
                    f"allreduce {label!r}: a vote needs a dense tensor, got tf.IndexedSlices"
                )
            signal = tf.convert_to_tensor(tensor)
            check_dtype(f"allreduce {label!r}", signal.dtype.name)
            if prescale_factor != 1.0:
                signal = signal * tf.cast(prescale_factor, signal.dtype)
            signals.append(signal)
    name = bridge.name_in_graph(ALLREDUCE, name, signals[0])
    scalars = [signal.shape.rank == 0 for signal in signals]

    def work(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        asked = []
        called = labels(name, len(inputs))
        for label, scalar, signal, out in zip(called, scalars, inputs, outputs, strict=True):
            shape = () if scalar else signal.shape
            voter = HostVoter(signal, out, postscale_factor)
            asked.append(Tensor(label, shape, signal.dtype.name, voter))
        job.adhoc(process_set).vote(asked, rule, options, name=name).wait()

    return bridge.call(work, signals)


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
    process_set: Any = plain.global_process_set,
    ignore_name_scope: bool = False,
    **vote: Any,
) -> tf.Tensor:
    """Horovod's ``allreduce``, or with ``op=hvd.MajorityVote`` a vote of all ranks.

    ``compression=hvd.Compression.sign`` asks for a vote too. Eagerly or within a ``tf.function``;
    there an unnamed vote is called after its tensor.

    A vote's keywords, beyond Horovod's arguments; None takes the default:
        exchange: ``"sharded"`` (default), ``"allgather"``, ``"hierarchical"`` or ``"auto"``.
        local: ``"vote"`` (default) or ``"mean"``, what makes a node's vote.
        fallback: ``"allreduce"``: with ``exchange="auto"``, a dense sum where it is faster; with
            ``scale`` its verdict is the mean, however far one rank moves it.
        ties: ``"coin"`` (default), ``"zero"`` or ``"positive"``.
        seed: of the coins, default 0.
        scale: ``"none"`` (default), or ``"mean_abs"``: times the median of the ranks' mean absolute
            values, the lower middle one of an even number, which one rank cannot move far.

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
    op = op_of(compression, op, Compression.none)
    if not is_vote_rule(op):
        refuse_vote_options(vote)
        result: tf.Tensor = plain.allreduce(
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
    process_set: Any = plain.global_process_set,
    ignore_name_scope: bool = False,
    name: str | None = None,
    **vote: Any,
) -> list[tf.Tensor]:
    """Horovod's ``grouped_allreduce``, or one vote on several tensors: see ``allreduce``."""
    op = op_of(compression, op, Compression.none)
    if not is_vote_rule(op):
        refuse_vote_options(vote)
        return list(
            plain.grouped_allreduce(
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
        )
    return _vote(tensors, op, average, name, prescale_factor, postscale_factor, process_set, vote)
