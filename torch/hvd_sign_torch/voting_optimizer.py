"""``DistributedOptimizer``: gradients are voted on while backward goes on."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import horovod.torch as horovod
import torch
from horovod.torch import ProcessSet, global_process_set

from hvd_sign.asking import op_of, refuse_vote_options, vote_options
from hvd_sign.ballots import Voter
from hvd_sign.buckets import TensorSpec, group_positions
from hvd_sign.collectives import check_dtype
from hvd_sign.options import positive_factor
from hvd_sign.session import BUCKET_BYTES, VoteSession
from hvd_sign.votes import is_vote_rule, make_rule
from hvd_sign_torch.device import dtype_name, make_voter
from hvd_sign_torch.parameters import parameter_names, refuse_thawed
from hvd_sign_torch.sign_compression import Compression
from hvd_sign_torch.worlds import job

HOLDER = "_hvd_sign_votes"
"""The attribute of a parameter that knows, weakly, who votes on its gradient."""


class GradientVotes:
    """The votes on an optimizer's gradients: hooks, passes, and whose turn it is.

    Args:
        optimizer: whose parameters' gradients are voted on.
        names: each parameter's.
        passes: backward passes before a gradient is complete.
        sparse_as_dense: vote on sparse gradients as dense ones.
        open_session: makes the session from the parameters that require gradients, in order.
        grad_scaler: whose scale the gradients carry, and the verdicts then carry too.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: dict[torch.Tensor, str],
        passes: int,
        sparse_as_dense: bool,
        open_session: Callable[[list[torch.Tensor], list[TensorSpec]], VoteSession],
        grad_scaler: Any = None,
    ) -> None:
        self.passes = passes
        self.grad_scaler = grad_scaler
        self._retired = False
        self._names = names
        self._sparse_as_dense = sparse_as_dense
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        self._parameters = [p for p in everything if p.requires_grad]
        self._frozen = [p for p in everything if not p.requires_grad]
        specs = []
        for ordinal, p in enumerate(self._parameters):
            check_dtype(f"parameter {names[p]!r}", dtype_name(p))
            specs.append(TensorSpec(names[p], tuple(p.shape), dtype_name(p), ordinal))
        self._session = open_session(self._parameters, specs)
        self._passes_left = [passes] * len(specs)
        self._sparse: dict[int, torch.Tensor] = {}
        self._session.on_reset(self._restore)
        self._scale: float | None = None
        hooks = [
            p.register_post_accumulate_grad_hook(_hook(weakref.ref(self), ordinal))
            for ordinal, p in enumerate(self._parameters)
        ]
        # As Horovod's, they end with the optimizer, so that another can be built on the model.
        self._unhook = weakref.finalize(self, _remove, hooks)
        for p in self._parameters:
            earlier = getattr(p, HOLDER, lambda: None)()
            if earlier is not None:
                earlier.retire()
            setattr(p, HOLDER, weakref.ref(self))

    @property
    def under_way(self) -> bool:
        """Whether gradients of a step have come and not been voted on to the end."""
        return any(left != self.passes for left in self._passes_left)

    def set_passes(self, passes: int) -> None:
        """Changes the number of backward passes a step."""
        if passes <= 0:
            raise ValueError("backward_passes_per_step must be > 0")
        self.passes = passes
        self._passes_left = [passes] * len(self._parameters)

    def finish(self) -> bool:
        """Votes on the rest, waits, and leaves verdicts in ``p.grad``.

        Returns:
            Whether the step counts, see ``VoteSession.finish``.

        Raises:
            ValueError: a parameter without a vote has come to require a gradient.
        """
        if self._retired:
            raise RuntimeError(
                "this optimizer votes no more: hvd.DistributedOptimizer has wrapped its parameters "
                "anew"
            )
        sparse = self._sparse  # filled until the session's reset, which replaces it
        counts = self._session.finish(self._missing)
        refuse_thawed(self._frozen, self._names)
        if counts:
            for ordinal, verdict in sparse.items():
                self._parameters[ordinal].grad = verdict.to_sparse()
        elif self.grad_scaler is not None:
            # It is the scaler who skips then, on all ranks alike, and lowers its scale.
            for parameter in self._parameters:
                parameter.grad = torch.full_like(parameter, math.inf)
            return True
        return counts

    def retire(self) -> None:
        """Another optimizer votes on the parameters from now on."""
        self._unhook()
        self._retired = True

    def gradient_ready(self, ordinal: int) -> None:
        """Counts a backward pass of a parameter; called by its hook."""
        if self._session.stream.closed:  # by shutdown(): nobody votes on it any more
            return
        if self._passes_left[ordinal] <= 0:
            raise AssertionError(
                "Gradients were computed more than backward_passes_per_step times before "
                "call to step(). Increase backward_passes_per_step to accumulate gradients "
                "locally."
            )
        self._passes_left[ordinal] -= 1
        if self._passes_left[ordinal] == 0:
            self._session.ready(ordinal, self._voter(ordinal))

    def _restore(self) -> None:
        self._sparse = {}
        self._scale = None
        self._passes_left = [self.passes] * len(self._parameters)

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


def _hook(votes: weakref.ref[GradientVotes], ordinal: int) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        alive = votes()
        if alive is not None:
            alive.gradient_ready(ordinal)

    return hook


def _remove(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()


class VotingOptimizer:
    """What a wrapped optimizer gains; its class derives from this one and from its own."""

    _votes: GradientVotes | None
    _synchronized: bool
    _should_synchronize: bool
    _counts: bool

    def synchronize(self) -> None:
        """Waits for the votes and leaves the verdicts in ``p.grad``."""
        if self._votes is not None:
            self._counts = self._votes.finish()
        self._synchronized = True

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Within it, ``step()`` does not synchronize: for use after ``synchronize()``."""
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Waits for the votes, then lets the wrapped optimizer step on the verdicts.

        Args:
            closure: evaluated first, as it computes the gradients to vote on.

        Returns:
            The closure's result.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._should_synchronize:
            if self._synchronized:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after "
                    "optimizer.synchronize(). This votes on verdicts; use "
                    "optimizer.skip_synchronize() if you call optimizer.synchronize().",
                    stacklevel=2,
                )
            if self._votes is not None and self._votes.grad_scaler is not None:
                raise AssertionError(
                    "optimizer.step(): with a grad_scaler, call optimizer.synchronize() before "
                    "scaler.unscale_(optimizer), and scaler.step(optimizer) within "
                    "optimizer.skip_synchronize()."
                )
            self.synchronize()
        self._synchronized = False
        if self._counts:
            super().step()  # type: ignore[misc]
        self._counts = True
        return loss

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Zeroes gradients.

        Raises:
            AssertionError: gradients are being voted on.
        """
        if self._votes is not None and self._votes.under_way:
            raise AssertionError(
                "optimizer.zero_grad() was called after loss.backward() but before "
                "optimizer.step() or optimizer.synchronize(). This is prohibited as it can cause "
                "a race condition."
            )
        super().zero_grad(*args, **kwargs)  # type: ignore[misc]

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Changes how many backward passes make a gradient."""
        if self._votes is not None:
            self._votes.set_passes(passes)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: all ranks have agreed on the parameters.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "add_param_group: add parameters to the optimizer before hvd.DistributedOptimizer "
            "wraps it"
        )

    def plain(self) -> torch.optim.Optimizer:
        """The wrapped optimizer without the vote; shares parameters and state."""
        base: Any = type(self).__bases__[1]
        plain: torch.optim.Optimizer = base.__new__(base)
        # A scheduler leaves a step() of the wrapper among the attributes.
        plain.__dict__.update({k: v for k, v in self.__dict__.items() if k != "step"})
        return plain


def DistributedOptimizer(  # noqa: N802, the name that Horovod's users know
    optimizer: torch.optim.Optimizer,
    named_parameters: Any = None,
    compression: Any = Compression.none,
    backward_passes_per_step: int = 1,
    op: Any = None,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    sparse_as_dense: bool = False,
    process_set: ProcessSet = global_process_set,
    *,
    bucket_bytes: int | str | None = None,
    grad_scaler: Any = None,
    **vote: Any,
) -> Any:
    """Horovod's ``DistributedOptimizer``, or one that votes on gradients.

    It votes if ``compression`` is ``hvd.Compression.sign`` or ``op`` is ``hvd.MajorityVote``: each
    rank sends the signs of its gradient, and ``p.grad`` becomes the majority's verdict in
    {-1, 0, +1} (Bernstein et al. 2019, arXiv 1810.05291), which the wrapped optimizer then steps
    on; a learning rate near 1e-4 fits SGD. Collective over ``process_set``.

    Horovod's arguments mean what they mean there. In a vote ``groups`` says which gradients share
    messages, and ``gradient_predivide_factor``, which changes no sign, has no effect. Sparse
    gradients need ``sparse_as_dense=True``. ``step(closure)`` evaluates the closure once, before
    the vote.

    A vote's own keywords; None takes the default:
        exchange: ``"sharded"`` (default), ``"allgather"``, ``"hierarchical"``: one vote a node,
            or ``"auto"``: for each bucket the cheapest by what ``hvd-sign bench-link`` measured,
            or else by a measurement of one or two seconds now.
        local: ``"vote"`` (default) or ``"mean"``: what makes a node's vote if it has one.
        fallback: ``"allreduce"``: with ``exchange="auto"``, a dense fp32 allreduce in the place of
            votes that would take longer: the sign of the mean gradient, or with ``scale`` the mean.
        ties: what decides zeros and ties: ``"coin"`` (default), ``"zero"``, ``"positive"``.
        seed: of the coins, default 0.
        scale: ``"none"`` (default) leaves +-1; ``"mean_abs"`` multiplies each tensor by the ranks'
            mean absolute gradient, so that a schedule made for SGD still fits.
        nonfinite: ``"abstain"`` (default): a rank that meets NaN or Inf abstains in that chunk of
            4096 coordinates; ``"skip"``: all ranks skip the step.
        bucket_bytes: gradients that share messages, in bytes of fp32; default 25 MiB; ``"auto"``
            plans it from the same measurement.
        grad_scaler: the ``torch.amp.GradScaler`` of a mixed-precision loop. The verdict carries its
            scale, so that ``scaler.unscale_`` gives the verdict back, and a step in which any rank
            met NaN or Inf is shown to it as Inf on all ranks (``nonfinite`` is then ``"skip"``).
            Call ``optimizer.synchronize()``, then ``scaler.unscale_(optimizer)``, then
            ``scaler.step(optimizer)`` within ``optimizer.skip_synchronize()``.

    Raises:
        ValueError: contradictory or unknown arguments, or ranks that differ in parameters or
            options; then all ranks raise the same error.
        TypeError: a parameter that is not fp32, fp64, fp16 or bf16.
        RuntimeError: ``hvd.init()`` was not called, or there is no MPI to vote over.
    """
    op = op_of(compression, op, Compression.none)
    if not is_vote_rule(op):
        refuse_vote_options(vote, bucket_bytes=bucket_bytes, grad_scaler=grad_scaler)
        return horovod.DistributedOptimizer(
            optimizer,
            named_parameters=named_parameters,
            compression=compression,
            backward_passes_per_step=backward_passes_per_step,
            op=horovod.Average if op is None else op,
            gradient_predivide_factor=gradient_predivide_factor,
            num_groups=num_groups,
            groups=groups,
            sparse_as_dense=sparse_as_dense,
            process_set=process_set,
        )
    if grad_scaler is not None and vote.setdefault("nonfinite", "skip") != "skip":
        raise ValueError("nonfinite: a grad_scaler needs 'skip', so that it sees what was skipped")
    options = vote_options(vote)
    positive_factor("gradient_predivide_factor", gradient_predivide_factor)
    if backward_passes_per_step <= 0:
        raise ValueError("backward_passes_per_step must be > 0")
    if isinstance(optimizer, VotingOptimizer):
        raise ValueError("optimizer: it votes already")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: LBFGS evaluates several gradients a step, of which a vote sees one; "
            "expected a first-order optimizer"
        )
    names = parameter_names(optimizer, named_parameters)
    groups = groups if groups is not None else (num_groups or None)

    def open_session(parameters: list[torch.Tensor], specs: list[TensorSpec]) -> VoteSession:
        return job.session(
            process_set,
            specs,
            make_rule(op),
            options,
            bucket_bytes=BUCKET_BYTES if bucket_bytes is None else bucket_bytes,
            groups=group_positions(groups, parameters, torch.Tensor, "torch.Tensor"),
        )

    base = type(optimizer)
    voting: Any = type(base.__name__, (VotingOptimizer, base), {})
    wrapped = voting.__new__(voting)
    # Shares parameters and state. A scheduler leaves a step() of the optimizer's own among the
    # attributes, which would hide the voting one.
    wrapped.__dict__.update({k: v for k, v in optimizer.__dict__.items() if k != "step"})
    wrapped._synchronized = False
    wrapped._should_synchronize = True
    wrapped._counts = True
    wrapped._votes = None
    if job.rank() in job.members(process_set):
        wrapped._votes = GradientVotes(
            wrapped, names, backward_passes_per_step, sparse_as_dense, open_session, grad_scaler
        )
    return wrapped
