"""The votes on an optimizer's gradients, held while backward goes on."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from hvd_sign.core.buckets import BLOCK, TensorSpec, check_dtype
from hvd_sign.devices import HOST, Operand
from hvd_sign.frontend.arguments import free_of_loss_scale
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign_torch.backend import backend
from hvd_sign_torch.devices import dtype_name, operand_of
from hvd_sign_torch.gradient_hooks import GradientHooks

logger = logging.getLogger("hvd_sign")

PRESENCE = "which parameters have gradients"
"""The name of what is voted on beside the gradients."""
LAST = 2**32 - 1
"""Its ordinal, above all parameters', to which coins belong."""

_numbers = itertools.count()


class GradientVotes(GradientHooks):
    """The votes on an optimizer's gradients.

    Beside them a block for each parameter is voted on, in which a rank without a gradient abstains,
    and of which the second coordinate is -1 where it is sparse: so all ranks know alike which
    parameters nobody has a gradient for, and which verdicts are to be sparse.

    Args:
        optimizer: whose parameters' gradients are voted on.
        names: each parameter's.
        passes: backward passes before a gradient is complete.
        sparse_as_dense: vote on sparse gradients as dense ones.
        grad_scaler: whose scale the gradients carry, and the verdicts then carry too.

    Attributes:
        parameters: those that require gradients, in order.
        specs: theirs.
        session: what holds the votes, once they have begun.
        number: how many have begun before, on every rank that began as many.

    Raises:
        TypeError: a parameter that cannot be voted on.
    """

    session: VoteSession
    number: int

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: dict[torch.Tensor, str],
        passes: int,
        sparse_as_dense: bool,
        grad_scaler: Any = None,
    ) -> None:
        super().__init__(optimizer, names, passes)
        self.grad_scaler = grad_scaler
        self._sparse_as_dense = sparse_as_dense
        self.parameters = self._parameters
        self._scaled_as = id(optimizer)
        count = len(self._parameters)
        self.specs = [TensorSpec(PRESENCE, (count, BLOCK), "float32", LAST)] if count else []
        for ordinal, p in enumerate(self._parameters):
            check_dtype(f"parameter {names[p]!r}", dtype_name(p))
            self.specs.append(TensorSpec(names[p], tuple(p.shape), dtype_name(p), ordinal))
        self._presence = np.zeros((count, BLOCK), np.float32)
        self._complete = 0
        self._apart: dict[int, torch.Tensor] = {}  # verdicts that are not written to p.grad
        self._scale: float | None = None
        self._shrinking_told = False

    def begin(self, opened: Callable[[], VoteSession]) -> None:
        """Votes from now on.

        Args:
            opened: makes a session of ``specs``; collective over its ranks.
        """
        self._opened = opened
        self.number = next(_numbers)
        self.open()
        self.hook()

    def open(self) -> None:
        """Votes in a new session, among the ranks that there are now; collective over them."""
        self.session = self._opened()
        self.session.on_reset(self._restore)
        self._restore()

    def exchange(self) -> bool:
        """Votes on the rest, waits, and leaves verdicts in ``p.grad``.

        Returns:
            Whether the step counts, see ``VoteSession.finish``.
        """
        apart = self._apart  # filled until the session's reset, which replaces it
        counts = self.session.finish(self._missing)
        if counts:
            self._place(apart)
        elif self.grad_scaler is not None:
            # It is the scaler who skips then, on all ranks alike, and lowers its scale.
            for parameter in self._parameters:
                parameter.grad = torch.full_like(parameter, math.inf)
            return True
        return counts

    def gradient_ready(self, ordinal: int) -> None:
        """Counts a backward pass of a parameter, unless ``shutdown()`` ended its votes."""
        if not self.session.stream.closed:
            super().gradient_ready(ordinal)

    def complete(self, ordinal: int) -> None:
        """Hands the gradient to the vote."""
        self.session.ready(ordinal, self._operand(ordinal))
        self._complete += 1
        if self._complete == len(self._parameters):
            self.session.ready(LAST, self._missing(LAST))

    def check_scaler(self, *, synchronized: bool) -> None:
        """Raises unless the GradScaler that is about to unscale and step may do so now.

        Raises:
            AssertionError: gradients are being voted on.
            ValueError: a scaler of which the votes know nothing.
        """
        if self.grad_scaler is None:
            raise ValueError(
                "scaler.step(optimizer): it would divide verdicts by the loss scale, and see no "
                "overflow of another rank; give hvd.DistributedOptimizer(..., grad_scaler=scaler), "
                "and call optimizer.synchronize(), then scaler.unscale_(optimizer), then "
                "scaler.step(optimizer) within optimizer.skip_synchronize()"
            )
        super().check_scaler(synchronized=synchronized)

    def check_results(self) -> None:
        """Tells once, on rank 0, that verdicts were all made smaller by one factor."""
        if self._shrinking_told or self.session.options.scale != "none":
            return
        factor = _common_factor(p.grad for p in self._parameters if p.grad is not None)
        if factor < 1:
            self._shrinking_told = True
            if backend.rank() == 0:
                logger.warning(
                    "verdicts were multiplied by %.3g between synchronize() and step(), and steps "
                    "shrink by it. Clipping by norm does that, since the norm of a verdict is the "
                    "root of its size: leave it out, or give scale='mean_abs'",
                    factor,
                )

    def touched(self) -> list[str]:
        """Of all gradients, if the scaler has divided them."""
        states = getattr(self.grad_scaler, "_per_optimizer_states", {})
        state = states.get(self._scaled_as)
        if self._handed and state is not None and state["stage"].name == "UNSCALED":
            return [self._names[self._parameters[ordinal]] for ordinal in sorted(self._handed)]
        return super().touched()

    def _restore(self) -> None:
        self._apart = {}
        self._complete = 0
        self._scale = None
        self.restart()

    def _operand(self, ordinal: int) -> Operand:
        parameter = self._parameters[ordinal]
        assert parameter.grad is not None
        sparse = parameter.grad.is_sparse
        if sparse and not self._sparse_as_dense:
            raise ValueError(
                f"parameter {self._names[parameter]!r}: a vote needs a dense "
                "gradient, got a sparse one; give DistributedOptimizer sparse_as_dense=True"
            )
        gradient = self.hand_over(ordinal)
        if sparse:
            gradient = self._apart[ordinal] = gradient.to_dense()
        self._presence[ordinal] = 1
        self._presence[ordinal, 1] = -1 if sparse else 1
        return operand_of(gradient, gradient, *self._factors())

    def _missing(self, ordinal: int) -> Operand:
        if ordinal == LAST:
            return Operand(HOST, self._presence, self._presence, raw=True)
        parameter = self._parameters[ordinal]
        if parameter.grad is not None:
            return self._operand(ordinal)
        self._presence[ordinal] = 0
        verdict = self._apart[ordinal] = torch.zeros_like(parameter)
        return operand_of(None, verdict, *self._factors())

    def _place(self, apart: dict[int, torch.Tensor]) -> None:
        """Gives verdicts to parameters: none where nobody has a gradient, sparse ones where sparse.

        Args:
            apart: those that were not written to ``p.grad``, by ordinal.
        """
        someone, sparse = self._presence[:, 0] != 0, self._presence[:, 1] < 0
        for ordinal in {*apart, *np.flatnonzero(sparse).tolist()}:
            parameter = self._parameters[ordinal]
            verdict = apart.get(ordinal, parameter.grad)
            assert verdict is not None
            if not someone[ordinal]:
                parameter.grad = None
            else:
                parameter.grad = verdict.to_sparse() if sparse[ordinal] else verdict

    def _factors(self) -> tuple[float, float]:
        """What a verdict is multiplied by, and a gradient before an algorithm with state sees it.

        By the former ``scaler.unscale_`` gives the verdict back.
        """
        if self.grad_scaler is None or not free_of_loss_scale(self.session.options):
            return 1.0, 1.0
        if self._scale is None:  # reading it waits for the device: once a step
            self._scale = float(self.grad_scaler.get_scale())
        return self._scale, 1 / self._scale


def _common_factor(verdicts: Iterable[torch.Tensor]) -> float:
    """By what verdicts of +-1 were multiplied, if all of them were by the same; else 1."""
    factor = None
    for verdict in verdicts:
        values = verdict._values() if verdict.is_sparse else verdict
        largest = float(values.detach().abs().max()) if values.numel() else 0.0
        if largest == 0:
            continue
        if largest >= 1 or (factor is not None and not math.isclose(largest, factor, rel_tol=0.01)):
            return 1.0
        factor = largest
    return 1.0 if factor is None else factor
