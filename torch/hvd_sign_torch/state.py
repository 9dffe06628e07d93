"""Broadcasting an optimizer's state: what the root has, and no more."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch

from hvd_sign.core.agreement import disagreement
from hvd_sign.errors import DisagreementError
from hvd_sign_torch.backend import horovod_api
from hvd_sign_torch.parameters import zeros
from hvd_sign_torch.voting_optimizer import VotingOptimizer

NAME = "optimizer.state"


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int, model: torch.nn.Module | None = None
) -> None:
    """Gives every rank one rank's state and options of an optimizer. Blocks; collective.

    No step is made, which would vote, and after which Adam's next one is no more its first: a state
    that is empty on the root is empty everywhere. As from Horovod, gradients that are None are then
    zeros. Votes go on from the root's number of steps and what its rule has learned, unless the
    root is outside of their process set; what an algorithm keeps of each rank's own gradients stays
    that rank's.

    Args:
        optimizer: wrapped or not, on all ranks with the same parameters in the same groups.
        root_rank: whose.
        model: whose sparse embeddings get sparse zeros.

    Raises:
        ValueError: LBFGS, as from Horovod; or, on all ranks alike, parameters that differ.
        TypeError: on all ranks alike: pickle cannot copy what is in the state or the options.
        AssertionError: at the end, on a rank that votes on gradients now, as the step of another
            number than the root's.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer: the state of LBFGS cannot be broadcast")
    _agree(optimizer)
    parameters = _parameters(optimizer)
    packed, error = b"", None
    tensors: list[torch.Tensor] = []
    if horovod_api.rank() == root_rank:
        try:
            packed, tensors = _pack(optimizer, parameters)
        except Exception as raised:  # a __reduce__ may raise anything
            error = f"optimizer: pickle cannot copy its state or options: {raised}"
    common = optimizer.common_state() if isinstance(optimizer, VotingOptimizer) else {}
    packed, error, common = horovod_api.broadcast_object((packed, error, common), root_rank, NAME)
    if error is not None:
        raise TypeError(error)
    take = None
    if horovod_api.rank() != root_rank:
        take, tensors = _unpack(packed, optimizer, parameters)
    handles = [
        horovod_api.broadcast_async_(_bytes(tensor), root_rank, f"{NAME}.{number}")
        for number, tensor in enumerate(tensors)
        if tensor.numel()
    ]
    for handle in handles:
        horovod_api.synchronize(handle)
    if take is not None:
        take()
    if not optimizer.state:
        _make_gradients(optimizer, model)
    if isinstance(optimizer, VotingOptimizer):
        optimizer.take_common_state(common)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _agree(optimizer: torch.optim.Optimizer) -> None:
    """Raises the same DisagreementError on every rank if they differ in the parameters."""
    groups = [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    digests = horovod_api.allgather_object(
        sha256(repr(groups).encode()).digest(), f"{NAME}.parameters"
    )
    if len(set(digests)) == 1:
        return
    everyone = horovod_api.allgather_object(groups, f"{NAME}.differs")
    claims = [{"parameters in each group": [len(g) for g in theirs]} for theirs in everyone]
    sentence = disagreement("optimizer", claims)
    if sentence is None:
        claims = [
            {
                f"shape of parameter {i}.{j}": shape
                for i, shapes in enumerate(theirs)
                for j, shape in enumerate(shapes)
            }
            for theirs in everyone
        ]
        sentence = disagreement("optimizer", claims)
    raise DisagreementError(sentence)


class _Packer(pickle.Pickler):
    """Pickles all but dense tensors, which are left to travel by themselves."""

    def __init__(self, file: io.BytesIO, parameters: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._places = {p.device: position for position, p in enumerate(parameters)}
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        """How a tensor is laid out, and a parameter that is where it is; None for the rest."""
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            return None
        dense = value.detach().resolve_conj().resolve_neg()
        if not dense.is_contiguous():
            dense = dense.clone()  # without gaps, in the same order
        self.tensors.append(dense)
        place = None if dense.device.type == "cpu" else self._places.get(dense.device)
        return tuple(dense.shape), dense.stride(), dense.dtype, place


class _Unpacker(pickle.Unpickler):
    """Makes room for the tensors that were left out."""

    def __init__(self, file: io.BytesIO, parameters: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._parameters = parameters
        self.tensors: list[torch.Tensor] = []

    def persistent_load(self, layout: Any) -> torch.Tensor:
        """An empty tensor."""
        shape, strides, dtype, place = layout
        device = "cpu" if place is None else self._parameters[place].device
        self.tensors.append(torch.empty_strided(shape, strides, dtype=dtype, device=device))
        return self.tensors[-1]


def _pack(
    optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]
) -> tuple[bytes, list[torch.Tensor]]:
    """State and options, in which numbers stand for parameters, and their tensors."""
    numbers = {id(p): number for number, p in enumerate(parameters)}
    state = [
        (numbers[id(key)], None, value) if id(key) in numbers else (None, key, value)
        for key, value in optimizer.state.items()
    ]
    options = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    file = io.BytesIO()
    packer = _Packer(file, parameters)
    packer.dump((state, options))
    return file.getvalue(), packer.tensors


def _unpack(
    packed: bytes, optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]
) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """What puts it into the optimizer, and the tensors to be filled before."""
    unpacker = _Unpacker(io.BytesIO(packed), parameters)
    state, options = unpacker.load()

    def take() -> None:
        optimizer.state.clear()
        for number, key, value in state:
            optimizer.state[key if number is None else parameters[number]] = value
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update(own)

    return take, unpacker.tensors


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a tensor without gaps, whose type the wire may not know."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _make_gradients(optimizer: torch.optim.Optimizer, model: torch.nn.Module | None) -> None:
    """Zeros for gradients that are None."""
    modules = () if model is None else model.modules()
    embeddings = [m for m in modules if isinstance(m, torch.nn.Embedding) and m.sparse]
    sparse = {id(p) for embedding in embeddings for p in embedding.parameters()}
    for p in _parameters(optimizer):
        if p.requires_grad and p.grad is None:
            rows = isinstance(optimizer, torch.optim.SparseAdam) or id(p) in sparse
            p.grad = zeros(p, 1 if rows else None)
