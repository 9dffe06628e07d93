"""The votes on an optimizer's gradients, held while backward goes on."""

from __future__ import annotations

import math
from typing import Any

import torch

from hvd_sign.ballots import Voter
from hvd_sign.buckets import TensorSpec
from hvd_sign.collectives import check_dtype
from hvd_sign.session import VoteSession
from hvd_sign_torch.device import dtype_name, make_voter
from hvd_sign_torch.gradient_hooks import GradientHooks


class GradientVotes(GradientHooks):
    """The votes on an optimizer's gradients.

    Args:
        optimizer: whose parameters' gradients are voted on.
        names: each parameter's.
        passes: backward passes before a gradient is complete.
        sparse_as_dense: vote on sparse gradients as dense ones.
        grad_scaler: whose scale the gradients carry, and the verdicts then carry too.

    Attributes:
        parameters: those that require gradients, in order.
        specs: theirs.

    Raises:
        TypeError: a parameter that cannot be voted on.
    """

    _session: VoteSession

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
        self.specs = []
        for ordinal, p in enumerate(self._parameters):
            check_dtype(f"parameter {names[p]!r}", dtype_name(p))
            self.specs.append(TensorSpec(names[p], tuple(p.shape), dtype_name(p), ordinal))
        self._sparse: dict[int, torch.Tensor] = {}
        self._scale: float | None = None

    def begin(self, session: VoteSession) -> None:
        """Votes in a session of ``specs`` from now on."""
        self._session = session
        session.on_reset(self._restore)
        self.hook()

    def finish(self) -> bool:
        """Votes on the rest, waits, and leaves verdicts in ``p.grad``.

        Returns:
            Whether the step counts, see ``VoteSession.finish``.

        Raises:
            ValueError: a parameter without a vote has come to require a gradient.
        """
        self.check_retired()
        sparse = self._sparse  # filled until the session's reset, which replaces it
        counts = self._session.finish(self._missing)
        self.check_frozen()
        if counts:
            for ordinal, verdict in sparse.items():
                self._parameters[ordinal].grad = verdict.to_sparse()
        elif self.grad_scaler is not None:
            # It is the scaler who skips then, on all ranks alike, and lowers its scale.
            for parameter in self._parameters:
                parameter.grad = torch.full_like(parameter, math.inf)
            return True
        return counts

    def gradient_ready(self, ordinal: int) -> None:
        """Counts a backward pass of a parameter, unless ``shutdown()`` ended its votes."""
        if not self._session.stream.closed:
            super().gradient_ready(ordinal)

    def complete(self, ordinal: int) -> None:
        """Hands the gradient to the vote."""
        self._session.ready(ordinal, self._voter(ordinal))

    def _restore(self) -> None:
        self._sparse = {}
        self._scale = None
        self.restart()

    def _voter(self, ordinal: int) -> Voter:
        gradient = self._parameters[ordinal].grad
        assert gradient is not None
        if gradient.is_sparse:
            if not self._sparse_as_dense:
                raise ValueError(
                    f"parameter {self._names[self._parameters[ordinal]]!r}: a vote needs a dense "
                    "gradient, got a sparse one; give DistributedOptimizer sparse_as_dense=True"
                )
            gradient = gradient.to_dense()
            self._sparse[ordinal] = gradient
        gradient = gradient.detach()
        return make_voter(gradient, gradient, self._factor())

    def _missing(self, ordinal: int) -> Voter:
        parameter = self._parameters[ordinal]
        if parameter.grad is not None:
            return self._voter(ordinal)
        parameter.grad = torch.zeros_like(parameter)
        return make_voter(None, parameter.grad, self._factor())

    def _factor(self) -> float:
        """What a verdict is multiplied by, so that ``scaler.unscale_`` gives the verdict back."""
        scaled_already = self._session.options.scale != "none"
        if self.grad_scaler is None or scaled_already:
            return 1.0
        if self._scale is None:  # reading it waits for the device: once a step
            self._scale = float(self.grad_scaler.get_scale())
        return self._scale
