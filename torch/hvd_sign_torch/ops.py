"""``allreduce`` and its kin, which take a vote rule as ``op`` beside Horovod's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from hvd_sign.adhoc import ALLREDUCE, Tensor
from hvd_sign.asking import call_options, labels, number, op_of_call
from hvd_sign.engine import Handle
from hvd_sign.jobs import HOROVOD
from hvd_sign.votes import is_vote_rule, make_rule
from hvd_sign_torch.device import dtype_name, make_voter
from hvd_sign_torch.require import BINDING
from hvd_sign_torch.sign_compression import Compression
from hvd_sign_torch.votable import check_apart, check_votable
from hvd_sign_torch.worlds import job, plain


def _operations() -> dict[str, Any]:
    if BINDING.runtime != HOROVOD:
        return dict(vars(plain))
    from hvd_sign_torch.named_operations import OPERATIONS

    return OPERATIONS


OPERATIONS = _operations()
"""What is done without a vote, by its name in Horovod."""


class VoteHandle:
    """What the asynchronous calls return for a vote; for ``poll()`` and ``synchronize()``."""

    def __init__(self, handle: Handle, output: Any) -> None:
        self.handle = handle
        self.output = output


def poll(handle: Any) -> bool:
    """Whether an asynchronous operation, a vote or another, has ended."""
    if isinstance(handle, VoteHandle):
        return handle.handle.done()
    return bool(plain.poll(handle))


def synchronize(handle: Any) -> Any:
    """Waits for an asynchronous operation, a vote or another, and returns its result."""
    if isinstance(handle, VoteHandle):
        handle.handle.wait()
        return handle.output
    return plain.synchronize(handle)


def _vote(
    kind: str,
    given: Any,
    op: object,
    average: bool | None,
    name: str | None,
    prescale_factor: float,
    postscale_factor: float,
    process_set: Any,
    chosen: dict[str, Any],
) -> VoteHandle:
    grouped, in_place = kind.startswith("grouped"), kind.endswith("_")
    stream = job.adhoc(process_set)
    with stream.refusing(ALLREDUCE, name):
        rule = make_rule(op)
        options = call_options(chosen)
        if average is not None:
            raise ValueError(f"average: not allowed together with op, got {average!r}")
        before = number("prescale_factor", prescale_factor)
        after = number("postscale_factor", postscale_factor)
        if grouped and not isinstance(given, Iterable):
            raise TypeError(f"tensors: expected a list of them, got {given!r}")
        signals = list(given) if grouped else [given]
        called = labels(name, len(signals))
        tensors, outputs = [], []
        for label, signal in zip(called, signals, strict=True):
            check_votable(f"allreduce {label!r}", signal, in_place=in_place)
            output = signal if in_place else torch.empty_like(signal, requires_grad=False)
            if before != 1.0:
                signal = signal.detach() * before
            voter = make_voter(signal.detach(), output.detach(), after)
            tensors.append(Tensor(label, tuple(signal.shape), dtype_name(output), voter))
            outputs.append(output)
        if in_place:
            check_apart(called, outputs)
    handle = stream.vote(tensors, rule, options, name=name)
    return VoteHandle(handle, outputs if grouped else outputs[0])


def _start(
    kind: str,
    tensors: Any,
    average: bool | None,
    name: str | None,
    op: object,
    prescale_factor: float,
    postscale_factor: float,
    process_set: Any,
    given: dict[str, Any],
) -> Any:
    """One asynchronous call: Horovod's function called ``kind``, or a vote in its place."""
    op = _chosen(Compression.none, op, name, process_set, given)
    if not is_vote_rule(op):
        operation = OPERATIONS[kind]
        return operation(tensors, average, name, op, prescale_factor, postscale_factor, process_set)
    return _vote(
        kind, tensors, op, average, name, prescale_factor, postscale_factor, process_set, given
    )


def _chosen(
    compression: Any, op: Any, name: str | None, process_set: Any, given: dict[str, Any]
) -> Any:
    """The operation that a call's arguments ask for; all ranks hear where they ask for none."""
    return op_of_call(
        compression,
        op,
        Compression.none,
        given,
        lambda: job.adhoc(process_set).refusing(ALLREDUCE, name),
    )


def allreduce_async(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = plain.global_process_set,
    **vote: Any,
) -> Any:
    """``horovod.torch.allreduce_async``, or a vote: see ``allreduce``."""
    return _start(
        "allreduce_async",
        tensor,
        average,
        name,
        op,
        prescale_factor,
        postscale_factor,
        process_set,
        vote,
    )


def allreduce_async_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = plain.global_process_set,
    **vote: Any,
) -> Any:
    """``horovod.torch.allreduce_async_``, or a vote: see ``allreduce``."""
    return _start(
        "allreduce_async_",
        tensor,
        average,
        name,
        op,
        prescale_factor,
        postscale_factor,
        process_set,
        vote,
    )


def grouped_allreduce_async(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = plain.global_process_set,
    **vote: Any,
) -> Any:
    """``horovod.torch.grouped_allreduce_async``, or a vote: see ``allreduce``."""
    return _start(
        "grouped_allreduce_async",
        tensors,
        average,
        name,
        op,
        prescale_factor,
        postscale_factor,
        process_set,
        vote,
    )


def grouped_allreduce_async_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = plain.global_process_set,
    **vote: Any,
) -> Any:
    """``horovod.torch.grouped_allreduce_async_``, or a vote: see ``allreduce``."""
    return _start(
        "grouped_allreduce_async_",
        tensors,
        average,
        name,
        op,
        prescale_factor,
        postscale_factor,
        process_set,
        vote,
    )


def allreduce(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = plain.global_process_set,
    **vote: Any,
) -> torch.Tensor:
    """``horovod.torch.allreduce``, or with ``op=hvd.MajorityVote`` a vote of all ranks.

    A vote's keywords, beyond Horovod's arguments; None takes the default:
        exchange: ``"sharded"`` (default), ``"allgather"``, ``"hierarchical"`` or ``"auto"``.
        local: ``"vote"`` (default) or ``"mean"``, what makes a node's vote.
        fallback: ``"allreduce"``: with ``exchange="auto"``, a dense sum where it is faster; with
            ``scale`` its verdict is the mean, however far one rank moves it.
        ties: ``"coin"`` (default), ``"zero"`` or ``"positive"``.
        seed: of the coins, default 0.
        scale: ``"none"`` (default), or ``"mean_abs"``: times the median of the ranks' mean absolute
            values, the lower middle one of an even number, which one rank cannot move far.

    ``compression=hvd.Compression.sign`` asks for a vote too.

    Returns:
        For a vote: the verdict in {-1, 0, +1}, times the scale and ``postscale_factor``, in the
        tensor's shape and type. No gradient flows through it: its derivative is zero almost
        everywhere.

    Raises:
        TypeError: a vote on an element type other than fp32, fp64, fp16 and bf16.
        ValueError: unknown options; options without a vote; a name already under way; and, on all
            ranks alike, ranks that differ in shape, type or options. If only some ranks' arguments
            are refused, the others raise a ValueError that names those ranks and tells why.
    """
    op = _chosen(compression, op, name, process_set, vote)
    if not is_vote_rule(op):
        return OPERATIONS["allreduce"](  # type: ignore[no-any-return]
            tensor, average, name, compression, op, prescale_factor, postscale_factor, process_set
        )
    handle = allreduce_async(
        tensor, average, name, op, prescale_factor, postscale_factor, process_set, **vote
    )
    return synchronize(handle)  # type: ignore[no-any-return]


def grouped_allreduce(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = plain.global_process_set,
    **vote: Any,
) -> list[torch.Tensor]:
    """``horovod.torch.grouped_allreduce``, or a vote: see ``allreduce``."""
    op = _chosen(compression, op, name, process_set, vote)
    if not is_vote_rule(op):
        return OPERATIONS["grouped_allreduce"](  # type: ignore[no-any-return]
            tensors, average, name, compression, op, prescale_factor, postscale_factor, process_set
        )
    handle = grouped_allreduce_async(
        tensors, average, name, op, prescale_factor, postscale_factor, process_set, **vote
    )
    return synchronize(handle)  # type: ignore[no-any-return]


def allreduce_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = plain.global_process_set,
    **vote: Any,
) -> torch.Tensor:
    """``horovod.torch.allreduce_``, or a vote: see ``allreduce``."""
    handle = allreduce_async_(
        tensor, average, name, op, prescale_factor, postscale_factor, process_set, **vote
    )
    return synchronize(handle)  # type: ignore[no-any-return]


def grouped_allreduce_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = plain.global_process_set,
    **vote: Any,
) -> list[torch.Tensor]:
    """``horovod.torch.grouped_allreduce_``, or a vote: see ``allreduce``."""
    handle = grouped_allreduce_async_(
        tensors, average, name, op, prescale_factor, postscale_factor, process_set, **vote
    )
    return synchronize(handle)  # type: ignore[no-any-return]
