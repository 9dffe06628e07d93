"""``DistributedOptimizer``: gradients are voted on while backward goes on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from hvd_sign.asking import let_scaler_skip, op_of, refuse_vote_options, vote_options
from hvd_sign.buckets import check_bucket_bytes, group_positions
from hvd_sign.calls import GRADIENTS, Opening
from hvd_sign.jobs import HorovodJob
from hvd_sign.options import positive_factor
from hvd_sign.session import BUCKET_BYTES
from hvd_sign.votes import is_vote_rule, make_rule
from hvd_sign_torch.exchanging_optimizer import ExchangingOptimizer, wrapped
from hvd_sign_torch.gradient_votes import GradientVotes
from hvd_sign_torch.parameters import parameter_names
from hvd_sign_torch.sign_compression import Compression
from hvd_sign_torch.worlds import job, plain


def _meet_first(optimizer: Any, job: HorovodJob, process_set: Any) -> None:
    """Lets Horovod's optimizer ask, before it first waits for gradients, whether others vote."""
    synchronize = optimizer.synchronize

    def meet() -> None:
        job.open_dense(process_set)
        optimizer.synchronize = synchronize
        synchronize()

    optimizer.synchronize = meet


class VotingOptimizer(ExchangingOptimizer):
    """What an optimizer gains whose gradients are voted on."""


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
    process_set: Any = plain.global_process_set,
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
    gradients need ``sparse_as_dense=True``; their verdicts are sparse on all ranks.
    ``step(closure)`` evaluates the closure once, before the vote.

    Where no rank has a gradient ``p.grad`` stays None, and nothing moves; a gradient of zeros on
    any rank is one. A gradient that is changed or replaced between backward and step is a
    RuntimeError on that rank at the step's end, which it does not make; the others, whom nothing
    holds up, do. The optimizer that is given and the one that comes back share everything; copied
    or pickled the latter is the former.

    A vote's own keywords; None takes the default:
        exchange: ``"sharded"`` (default), ``"allgather"``, ``"hierarchical"``: one vote a node,
            or ``"auto"``: for each bucket the cheapest by what ``hvd-sign bench-link`` measured,
            or else by a measurement of one or two seconds now.
        local: ``"vote"`` (default) or ``"mean"``: what makes a node's vote if it has one.
        fallback: ``"allreduce"``: with ``exchange="auto"``, a dense fp32 allreduce in the place of
            votes that would take longer: the sign of the mean gradient, or with ``scale`` the mean,
            however far one rank moves it.
        ties: what decides zeros and ties: ``"coin"`` (default), ``"zero"``, ``"positive"``. Rows
            that no rank has a gradient for, as an embedding's ``padding_idx``, keep still under
            ``"zero"``; else only if their width is a multiple of 64, for coins decide the zeros of
            a block of 64 coordinates in which any is not zero.
        seed: of the coins, default 0.
        scale: ``"none"`` (default) leaves +-1; ``"mean_abs"`` multiplies each tensor by the median
            of the ranks' mean absolute gradients, so that a schedule made for SGD still fits. Of an
            even number it is the lower middle one: no rank alone can move it far.
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
        reducing = plain.DistributedOptimizer(
            optimizer,
            named_parameters=named_parameters,
            compression=compression,
            backward_passes_per_step=backward_passes_per_step,
            op=plain.Average if op is None else op,
            gradient_predivide_factor=gradient_predivide_factor,
            num_groups=num_groups,
            groups=groups,
            sparse_as_dense=sparse_as_dense,
            process_set=process_set,
        )
        if isinstance(job, HorovodJob):
            _meet_first(reducing, job, process_set)
        return reducing
    included = job.rank() in job.members(process_set)
    bucket_bytes = BUCKET_BYTES if bucket_bytes is None else bucket_bytes
    groups = groups if groups is not None else (num_groups or None)
    # Whoever is refused tells the others, who would wait for it in the opening.
    with job.adhoc(process_set).refusing(Opening.kind, GRADIENTS) if included else nullcontext():
        if grad_scaler is not None:
            let_scaler_skip(vote, "a grad_scaler")
        options = vote_options(vote)
        check_bucket_bytes(bucket_bytes)
        positive_factor("gradient_predivide_factor", gradient_predivide_factor)
        if backward_passes_per_step <= 0:
            raise ValueError("backward_passes_per_step must be > 0")
        voting = wrapped(VotingOptimizer, optimizer)
        names = parameter_names(optimizer, named_parameters)
        votes = GradientVotes(voting, names, backward_passes_per_step, sparse_as_dense, grad_scaler)
        positions = group_positions(groups, votes.parameters, torch.Tensor, "torch.Tensor")
        before = len(votes.specs) - len(votes.parameters)
        rule = make_rule(op)
    if included:
        votes.begin(
            job.session(
                process_set,
                votes.specs,
                rule,
                options,
                bucket_bytes=bucket_bytes,
                groups=positions and [[before + i for i in group] for group in positions],
            )
        )
        voting._gradients = votes
    return voting
