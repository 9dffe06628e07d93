"""``DistributedOptimizer`` without a vote: gradients are reduced while backward goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hvd_sign.core.agreement import disagreement
from hvd_sign.core.buckets import group_positions
from hvd_sign.core.options import positive_factor
from hvd_sign.engine.operations import GRADIENTS, REDUCED
from hvd_sign.errors import DisagreementError
from hvd_sign.standalone import objects
from hvd_sign.standalone.process_sets import ProcessSet, global_process_set
from hvd_sign.standalone.ranks import ranks
from hvd_sign.standalone.reduce_op import ReduceOp, check_op
from hvd_sign_torch.devices import dtype_name
from hvd_sign_torch.exchanging_optimizer import ExchangingOptimizer, wrapped
from hvd_sign_torch.gradient_hooks import GradientHooks
from hvd_sign_torch.mpi.compression import Compression
from hvd_sign_torch.mpi.hosting import synchronize
from hvd_sign_torch.mpi.reductions import Average, Sum, allreduce_async_
from hvd_sign_torch.mpi.sparse import sparse_allreduce_async
from hvd_sign_torch.parameters import parameter_names, zeros


class GradientSums(GradientHooks):
    """The allreduces of an optimizer's gradients, each under its parameter's name.

    Args:
        optimizer: whose parameters' gradients are reduced.
        names: each parameter's.
        passes: backward passes before a gradient is complete.
        compression: what is done to a gradient before and after.
        op: ``Average`` or ``Sum``.
        predivide: divides gradients before the sum, and multiplies the sum.
        sparse_as_dense: reduce sparse gradients as dense ones.
        process_set: the ranks that take part.

    Raises:
        ValueError: on all ranks alike: they differ in the parameters.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: dict[torch.Tensor, str],
        passes: int,
        compression: Any,
        op: ReduceOp,
        predivide: float,
        sparse_as_dense: bool,
        process_set: ProcessSet,
    ) -> None:
        super().__init__(optimizer, names, passes)
        self._compression = compression
        self._op = op
        self._predivide = predivide
        self._sparse_as_dense = sparse_as_dense
        self._process_set = process_set
        self._waits: dict[int, Callable[[], None]] = {}
        # In how many dimensions a gradient was last sparse, so that a missing one can be so too.
        always = (
            range(len(self._parameters)) if isinstance(optimizer, torch.optim.SparseAdam) else ()
        )
        self._sparse_dims = dict.fromkeys(always, 1)
        self._agree()
        self.hook()

    def exchange(self) -> bool:
        """Reduces the rest, waits, and leaves results in ``p.grad``; the step counts."""
        for ordinal in range(len(self._parameters)):
            if ordinal not in self._waits:
                self.complete(ordinal)
        waits, self._waits = self._waits, {}
        self.restart()
        for wait in waits.values():
            wait()
        return True

    def complete(self, ordinal: int) -> None:
        """Begins a gradient's allreduce; a missing gradient is zero, sparse where it was so."""
        parameter = self._parameters[ordinal]
        name = self._names[parameter]
        if parameter.grad is None:
            parameter.grad = zeros(parameter, self._sparse_dims.get(ordinal))
        gradient = self.hand_over(ordinal)
        if gradient.is_sparse:
            self._sparse_dims[ordinal] = gradient.sparse_dim()
        if gradient.is_sparse and not self._sparse_as_dense:
            gathered = sparse_allreduce_async(gradient, name, self._op, self._process_set)
            self._waits[ordinal] = lambda: setattr(parameter, "grad", gathered())
            return
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        packed, context = self._compression.compress(dense)
        handle = allreduce_async_(
            packed,
            name=name,
            op=self._op,
            prescale_factor=1.0 / self._predivide,
            postscale_factor=self._predivide,
            process_set=self._process_set,
        )

        def wait() -> None:
            reduced = self._compression.decompress(synchronize(handle), context)
            if gradient.is_sparse:
                parameter.grad = reduced.to_sparse()
            elif reduced is not gradient:
                gradient.copy_(reduced)

        self._waits[ordinal] = wait

    def _agree(self) -> None:
        """Raises the same DisagreementError on every rank if they differ in the parameters.

        Or if some ranks vote on gradients.
        """
        ranks().stream(self._process_set).open(GRADIENTS, method=REDUCED)
        mine = {
            self._names[p]: {"shape": tuple(p.shape), "dtype": dtype_name(p)}
            for p in self._parameters
        }
        everyone = objects.allgather_object(mine, "parameters", self._process_set)
        nothing = {"shape": "nothing", "dtype": "nothing"}
        for name in sorted({name for theirs in everyone for name in theirs}):
            claims = [theirs.get(name, nothing) for theirs in everyone]
            sentence = disagreement(f"parameter {name!r}", claims)
            if sentence is not None:
                raise DisagreementError(sentence)


class ReducingOptimizer(ExchangingOptimizer):
    """What an optimizer gains whose gradients are reduced."""


def DistributedOptimizer(  # noqa: N802, the name that Horovod's users know
    optimizer: torch.optim.Optimizer,
    named_parameters: Any = None,
    compression: Any = Compression.none,
    backward_passes_per_step: int = 1,
    op: Any = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    sparse_as_dense: bool = False,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Wraps an optimizer: before it steps, ``p.grad`` becomes all ranks' mean or sum.

    Collective over ``process_set``. Arguments mean what they mean in Horovod; ``groups`` are
    checked, and without effect: each gradient is reduced by itself.

    Raises:
        ValueError: contradictory or unknown arguments; or, on all ranks alike, ranks that differ
            in parameters.
    """
    if check_op(op) not in (Average, Sum):
        raise ValueError(f"op: expected Average, Sum or a vote, got {check_op(op).name}")
    positive_factor("gradient_predivide_factor", gradient_predivide_factor)
    if gradient_predivide_factor != 1.0 and op != Average:
        raise ValueError("gradient_predivide_factor: only op=Average divides")
    if backward_passes_per_step <= 0:
        raise ValueError("backward_passes_per_step must be > 0")
    names = parameter_names(optimizer, named_parameters)
    groups = groups if groups is not None else (num_groups or None)
    group_positions(groups, list(names), torch.Tensor, "torch.Tensor")
    reducing = wrapped(ReducingOptimizer, optimizer)
    if process_set.included():
        reducing._gradients = GradientSums(
            reducing,
            names,
            backward_passes_per_step,
            compression,
            check_op(op),
            gradient_predivide_factor,
            sparse_as_dense,
            process_set,
        )
    return reducing
