"""``allreduce`` and its kin, which take a vote rule as ``op`` beside Horovod's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from hvd_sign.engine.progress import Handle
from hvd_sign.frontend.arguments import call_options, labels, number, op_of_call
from hvd_sign.frontend.backends import HOROVOD
from hvd_sign.runtime.named import ALLREDUCE, Tensor
from hvd_sign.transports.communication import ALLREDUCE as DENSE_ALLREDUCE
from hvd_sign.transports.communication import GROUPED_ALLREDUCE
from hvd_sign.votes import is_vote_rule, make_rule
from hvd_sign_torch.backend import backend, horovod_api
from hvd_sign_torch.devices import dtype_name, operand_of
from hvd_sign_torch.require import BINDING
from hvd_sign_torch.sign_compression import Compression
from hvd_sign_torch.votable import check_apart, check_votable


def _operations() -> dict[str, Any]:
    if BINDING.runtime != HOROVOD:
        return dict(vars(horovod_api))
    from hvd_sign_torch.named_operations import OPERATIONS

    return OPERATIONS


OPERATIONS = _operations()
"""What is done without a vote, by its name in Horovod."""


NAMELESS = DENSE_ALLREDUCE, None, None
_begun: dict[Any, tuple[str, Any, str | None]] = {}
"""What was begun by name and without a vote: what it is, among whom, its name."""


class VoteHandle:
    """What the asynchronous calls return for a vote; for ``poll()`` and ``synchronize()``."""

    def __init__(self, handle: Handle, output: Any) -> None:
        self.handle = handle
        self.output = output


def poll(handle: Any) -> bool:
    """Whether an asynchronous operation, a vote or another, has ended."""
    if isinstance(handle, VoteHandle):
        return handle.handle.done()
    return bool(horovod_api.poll(handle))


def synchronize(handle: Any) -> Any:
    """Waits for an asynchronous operation, a vote or another, and returns its result."""
    if isinstance(handle, VoteHandle):
        handle.handle.wait()
        return handle.output
    with backend.dense(*_begun.pop(handle, NAMELESS)):
        return horovod_api.synchronize(handle)


def _vote(
    kind: str,
    given: Any,
    op: object,
    average: bool | None,
    name: str | None,
    factors: tuple[float, float],
    process_set: Any,
    chosen: dict[str, Any],
) -> VoteHandle:
    grouped, in_place = kind.startswith("grouped"), kind.endswith("_")
    stream = backend.adhoc(process_set)
    with stream.refusing(ALLREDUCE, name):
        rule = make_rule(op)
        options = call_options(chosen)
        if average is not None:
            raise ValueError(f"average: not allowed together with op, got {average!r}")
        before = number("prescale_factor", factors[0])
        after = number("postscale_factor", factors[1])
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
            operand = operand_of(signal.detach(), output.detach(), after)
            tensors.append(Tensor(label, tuple(signal.shape), dtype_name(output), operand))
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
    factors: tuple[float, float],
    process_set: Any,
    given: dict[str, Any],
) -> Any:
    """One asynchronous call: Horovod's function called ``kind``, or a vote in its place."""
    op, given = _chosen(Compression.none, op, name, process_set, given)
    if not is_vote_rule(op):
        operation = OPERATIONS[kind]
        handle = operation(tensors, average, name, op, *factors, process_set)
        if name is not None:
            dense = GROUPED_ALLREDUCE if kind.startswith("grouped") else DENSE_ALLREDUCE
            _begun[handle] = dense, process_set, name
        return handle
    return _vote(kind, tensors, op, average, name, factors, process_set, given)


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


def allreduce_async(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = horovod_api.global_process_set,
    **vote: Any,
) -> Any:
    """``horovod.torch.allreduce_async``, or a vote: see ``allreduce``."""
    factors = prescale_factor, postscale_factor
    return _start("allreduce_async", tensor, average, name, op, factors, process_set, vote)


def allreduce_async_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = horovod_api.global_process_set,
    **vote: Any,
) -> Any:
    """``horovod.torch.allreduce_async_``, or a vote: see ``allreduce``."""
    factors = prescale_factor, postscale_factor
    return _start("allreduce_async_", tensor, average, name, op, factors, process_set, vote)


def grouped_allreduce_async(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = horovod_api.global_process_set,
    **vote: Any,
) -> Any:
    """``horovod.torch.grouped_allreduce_async``, or a vote: see ``allreduce``."""
    factors = prescale_factor, postscale_factor
    return _start("grouped_allreduce_async", tensors, average, name, op, factors, process_set, vote)


def grouped_allreduce_async_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = horovod_api.global_process_set,
    **vote: Any,
) -> Any:
    """``horovod.torch.grouped_allreduce_async_``, or a vote: see ``allreduce``."""
    factors = prescale_factor, postscale_factor
    return _start(
        "grouped_allreduce_async_", tensors, average, name, op, factors, process_set, vote
    )


def allreduce(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = horovod_api.global_process_set,
    **vote: Any,
) -> torch.Tensor:
    """``horovod.torch.allreduce``, or with ``op=hvd.MajorityVote`` a vote of all ranks.

    A vote's own keywords are those of ``hvd_sign.VoteOptions``, which documents them: ``exchange``,
    ``local``, ``fallback``, ``ties``, ``seed``, ``scale``, ``algorithm``.

    ``compression=hvd.Compression.sign`` asks for a vote too, as does ``.signum(0.9)``, say, which
    keeps momentum under the call's ``name``.

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
    op, vote = _chosen(compression, op, name, process_set, vote)
    if not is_vote_rule(op):
        with backend.dense(DENSE_ALLREDUCE, process_set, name):
            return OPERATIONS["allreduce"](  # type: ignore[no-any-return]
                tensor,
                average,
                name,
                compression,
                op,
                prescale_factor,
                postscale_factor,
                process_set,
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
    process_set: Any = horovod_api.global_process_set,
    **vote: Any,
) -> list[torch.Tensor]:
    """``horovod.torch.grouped_allreduce``, or a vote: see ``allreduce``."""
    op, vote = _chosen(compression, op, name, process_set, vote)
    if not is_vote_rule(op):
        with backend.dense(GROUPED_ALLREDUCE, process_set, name):
            return OPERATIONS["grouped_allreduce"](  # type: ignore[no-any-return]
                tensors,
                average,
                name,
                compression,
                op,
                prescale_factor,
                postscale_factor,
                process_set,
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
    process_set: Any = horovod_api.global_process_set,
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
    process_set: Any = horovod_api.global_process_set,
    **vote: Any,
) -> list[torch.Tensor]:
    """``horovod.torch.grouped_allreduce_``, or a vote: see ``allreduce``."""
    handle = grouped_allreduce_async_(
        tensors, average, name, op, prescale_factor, postscale_factor, process_set, **vote
    )
    return synchronize(handle)  # type: ignore[no-any-return]
