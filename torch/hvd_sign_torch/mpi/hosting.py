"""How tensors become arrays in the host's memory, and back.

A contiguous CPU tensor shares its memory with its array. numpy knows no bf16: it is computed with
in fp32, and moved as 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from hvd_sign.engine.progress import Handle
from hvd_sign.errors import TensorError
from hvd_sign.standalone.operations import Array, Barrier, Collective
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.ranks import enqueue
from hvd_sign_torch.devices import dtype_name

Kind = TypeVar("Kind", bound=Collective)


class OperationHandle:
    """An operation under way; for ``poll()`` and ``synchronize()``.

    Args:
        handle: of its end.
        finish: makes its output, once it has ended.
    """

    def __init__(self, handle: Handle, finish: Callable[[], Any]) -> None:
        self._handle = handle
        self._finish: Callable[[], Any] | None = finish
        self._output: Any = None

    def poll(self) -> bool:
        """Whether it has ended."""
        return self._handle.done()

    def only(self) -> OperationHandle:
        """The same, of an operation on a group of one."""
        return OperationHandle(self._handle, lambda: self.synchronize()[0])

    def synchronize(self) -> Any:
        """Waits for it; its output."""
        self._handle.wait()
        if self._finish is not None:
            self._output, self._finish = self._finish(), None
        return self._output


def poll(handle: OperationHandle) -> bool:
    """Whether an asynchronous operation has ended, so that ``synchronize()`` does not wait."""
    return handle.poll()


def synchronize(handle: OperationHandle) -> Any:
    """Waits for an asynchronous operation and returns its output.

    Raises:
        ValueError: on all ranks alike: they differ in what they asked for, or some were refused.
    """
    return handle.synchronize()


def begin(
    kind: type[Kind],
    make: Callable[[Any], Kind],
    tensors: Sequence[torch.Tensor],
    finish: Callable[[Any], Any],
    name: str | None,
    process_set: ProcessSet,
) -> OperationHandle:
    """Begins a collective of tensors.

    Args:
        kind: of collective.
        make: makes it, given the communicator; see ``hvd_sign.standalone.ranks.enqueue``.
        tensors: what it is about.
        finish: makes the output from the collective's result.
        name: of the call.
        process_set: the ranks that take part.

    Raises:
        TensorError: a tensor that is none, or sparse; or raised by ``make``. So is ValueError.
    """

    def checked(communicator: Any) -> Kind:
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                raise TensorError(f"tensor: expected a torch.Tensor, got {type(tensor).__name__}")
            if tensor.is_sparse:
                raise TensorError("tensor: expected a dense one, got a sparse one")
        call = make(communicator)
        for member, tensor in zip(getattr(call, "members", ()), tensors, strict=False):
            member.types = [dtype_name(tensor)]
        call.types = [dtype_name(tensor) for tensor in tensors]
        return call

    handle = enqueue(kind, checked, name, process_set)
    return OperationHandle(handle.handle, lambda: finish(handle.collective.result()))


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """What a function that gradients flow through makes of tensors and other arguments."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def numbers(tensor: torch.Tensor) -> Array:
    """A tensor's array to compute with."""
    host = _host(tensor)
    array: Array = (host.float() if host.dtype == torch.bfloat16 else host).numpy()
    return array


def items(tensor: torch.Tensor) -> Array:
    """A tensor's array to move about."""
    host = _host(tensor)
    array: Array = (host.view(torch.int16) if host.dtype == torch.bfloat16 else host).numpy()
    return array


def _host(tensor: torch.Tensor) -> torch.Tensor:
    """What an array can be of: what PyTorch put off, to negate or conjugate it, is done."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def from_numbers(array: Array, like: torch.Tensor) -> torch.Tensor:
    """A tensor of numbers, of the type and on the device of another."""
    return torch.from_numpy(np.asarray(array)).to(like.device, like.dtype)


def from_items(array: Array, like: torch.Tensor) -> torch.Tensor:
    """A tensor of items, of the type and on the device of another."""
    moved = torch.from_numpy(np.asarray(array))
    return (moved.view(like.dtype) if like.dtype == torch.bfloat16 else moved).to(like.device)


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Waits until all ranks of a process set have come."""
    enqueue(Barrier, Barrier, None, process_set).result()
