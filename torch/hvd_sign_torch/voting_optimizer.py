"""``DistributedOptimizer``: gradients are voted on while backward goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hvd_sign.core.buckets import check_bucket_bytes
from hvd_sign.core.training import split_keywords
from hvd_sign.engine.operations import GRADIENTS, Opening
from hvd_sign.frontend.arguments import gradient_settings, refuse_vote_options
from hvd_sign.frontend.backends import HorovodBackend
from hvd_sign.frontend.sign_optimizers import keywords_for, op_for
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign.votes import is_vote_rule, make_rule
from hvd_sign_torch.backend import backend, horovod_api
from hvd_sign_torch.exchanging_optimizer import ExchangingOptimizer, wrapped
from hvd_sign_torch.gradient_votes import GradientVotes
from hvd_sign_torch.parameters import parameter_names
from hvd_sign_torch.sign_compression import Compression
from hvd_sign_torch.sign_optimizers import OptimizerOfSigns
from hvd_sign_torch.terms import Terms
from hvd_sign_torch.vote_state import STATE, as_arrays, as_tensors


def _meet_first(optimizer: Any, backend: HorovodBackend, process_set: Any) -> None:
    """Lets Horovod's optimizer ask, before it first waits for gradients, whether others vote."""
    synchronize = optimizer.synchronize

    def meet() -> None:
        backend.open_dense(process_set)
        optimizer.synchronize = synchronize
        synchronize()

    optimizer.synchronize = meet


class VotingOptimizer(ExchangingOptimizer):
    """What an optimizer gains whose gradients are voted on."""

    _gradients: GradientVotes | None

    @property
    def votes(self) -> GradientVotes | None:
        """The votes on its gradients; None on a rank outside of the process set."""
        return self._gradients

    @property
    def _session(self) -> VoteSession | None:
        """None on a rank outside of the process set."""
        return None if self._gradients is None else self._gradients.session

    def _stepping(self) -> AbstractContextManager[None]:
        """An optimizer of signs takes verdicts as they are, and means for gradients."""
        if self._gradients is not None and isinstance(self._wrapped, OptimizerOfSigns):
            agreed, own = self._gradients.terms.of_signs, self._wrapped.vote_keywords()
            if agreed is not None and own != agreed:
                raise ValueError(
                    f"param_groups: ranks vote by {agreed}, as was said when "
                    f"hvd.DistributedOptimizer wrapped the optimizer, got {own} since; leave betas "
                    "and the like as they were (cycle_momentum=False of a schedule), or wrap anew"
                )
            return self._wrapped.on_verdicts(self._gradients.verdicts)
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, and under ``"hvd_sign"`` what the votes go on from.

        That are tensors in host memory: ``"step"``, int64[], by which coins fall; of an algorithm
        that keeps something its arrays of this rank, such as ``"momentum/3"`` of the fourth
        parameter that requires gradients, flat, fp32 or fp64; of a rule that learns ``"rule/..."``,
        the same on all ranks. PyTorch's optimizers ignore that key. Hooks see the wrapped
        optimizer's part.

        Raises:
            AssertionError: an algorithm's arrays are changing: gradients are being voted on.
        """
        state: dict[str, Any] = self._wrapped.state_dict()
        if self._session is None:
            return state
        assert self._gradients is not None
        arrays = self._gradients.state()
        return {**state, STATE: as_tensors(arrays)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict()`` returned, all of it or nothing.

        With a plain optimizer's the votes go on as they are. Ranks have to go on from the same
        number of steps and the same ``"rule/..."``: all of them load, or else
        ``hvd.broadcast_optimizer_state`` comes next, which leaves each rank its algorithm's arrays.

        Raises:
            ValueError: the votes' part or the optimizer's is damaged, or another algorithm's; or
                parameters were added, frozen or unfrozen since the last step.
            AssertionError: gradients are being voted on.
        """
        self.check_between_steps("load_state_dict")
        kept = state_dict.get(STATE)
        if self._session is None or kept is None:
            self._wrapped.load_state_dict(state_dict)
            return
        if self._gradients is not None and self._gradients.outdated():
            raise ValueError(
                "load_state_dict: parameters were added, frozen or unfrozen since the last step, "
                "and votes begin anew with the next one; load before that, or do it before "
                "hvd.DistributedOptimizer wraps the optimizer"
            )
        arrays = as_arrays(kept)
        self._session.check_state(arrays)
        self._wrapped.load_state_dict(state_dict)
        self._session.load_state(arrays)

    def synchronize(self) -> None:
        """Waits for the votes and leaves what comes of them in ``p.grad``.

        Where other parameters require gradients than in the step before, votes begin anew, and
        what is kept goes on by parameter: collective, and not hidden behind backward in that step.

        Raises:
            DisagreementError: on this rank, if others have changed no parameters or other ones;
                those hear of it at their next step.
        """
        if self._gradients is not None and self._gradients.outdated():
            self._gradients = self._gradients.reopened()
        super().synchronize()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, which are voted on from the next step on.

        All ranks add them between the same two steps, alike.

        Raises:
            ValueError: an optimizer of signs cannot have such a group.
            AssertionError: gradients are being voted on.
        """
        self.check_between_steps("add_param_group")
        self._wrapped.add_param_group(param_group)
        if isinstance(self._wrapped, OptimizerOfSigns):
            try:
                self._wrapped.vote_keywords()
            except ValueError:
                self._wrapped.param_groups.pop()
                raise

    def common_state(self) -> dict[str, Any]:
        """What ranks go on from together, see ``VoteSession.common_state``; empty outside of it."""
        return {} if self._session is None else self._session.common_state()

    def take_common_state(self, common: dict[str, Any]) -> None:
        """Goes on from another rank's ``common_state()``, unless that is empty."""
        if self._session is not None and common:
            self._session.take_common_state(common)


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
    process_set: Any = horovod_api.global_process_set,
    *,
    bucket_bytes: int | str | None = None,
    grad_scaler: Any = None,
    vote_if: Callable[[str, torch.Tensor], bool] | None = None,
    min_size: int | None = None,
    **vote: Any,
) -> Any:
    """Horovod's ``DistributedOptimizer``, or one that votes on gradients.

    It votes if ``compression`` is ``hvd.Compression.sign`` or its like, such as
    ``hvd.Compression.signum(0.9)``, if ``op`` is ``hvd.MajorityVote``, or if the optimizer is
    ``hvd.SignSGD``, ``hvd.Signum``, ``hvd.Lion`` or ``hvd.OneBitAdam`` and neither is given: each
    rank sends the signs of its gradient, or of what an algorithm makes of it, and ``p.grad``
    becomes the majority's verdict in {-1, 0, +1} (Bernstein et al. 2019, arXiv 1810.05291), which
    the wrapped optimizer then steps on; a learning rate near 1e-4 fits SGD. With
    ``hvd.Compression.onebit()`` it becomes their mean as signs tell it, of the size of a gradient.
    Collective over ``process_set``.

    Horovod's arguments mean what they mean there. In a vote ``groups`` says which gradients share
    messages, and ``gradient_predivide_factor``, which changes no sign, has no effect. Sparse
    gradients need ``sparse_as_dense=True``; their verdicts are sparse on all ranks.
    ``step(closure)`` evaluates the closure once, before the vote.

    Where no rank has a gradient ``p.grad`` stays None, and nothing moves; a gradient of zeros on
    any rank is one. A gradient that is changed or replaced between backward and step is a
    RuntimeError on that rank at the step's end, which it does not make; the others, whom nothing
    holds up, do. The optimizer that is given and the one that comes back share everything; copied
    or pickled the latter is the former.

    A vote's own keywords are those of ``hvd_sign.VoteOptions``, which documents them: ``exchange``,
    ``local``, ``fallback``, ``ties``, ``seed``, ``scale``, ``nonfinite``, ``algorithm``. In an
    optimizer ``algorithm`` sees the sum of a step's backward passes; ``state_dict()`` has what it
    keeps. Those of ``hvd_sign.TrainingOptions``: ``warmup_steps``, ``clip_value``,
    ``clip_norm``, ``check_every``. And:
        bucket_bytes: gradients that share messages, in bytes of fp32; default 25 MiB; ``"auto"``
            plans it from the same measurement.
        grad_scaler: the ``torch.amp.GradScaler`` of a mixed-precision loop. The verdict carries its
            scale, so that ``scaler.unscale_`` gives the verdict back, and a step in which any rank
            met NaN or Inf is shown to it as Inf on all ranks (``nonfinite`` is then ``"skip"``).
            An algorithm that keeps something sees unscaled gradients, and no skipped step.
            Call ``optimizer.synchronize()``, then ``scaler.unscale_(optimizer)``, then
            ``scaler.step(optimizer)`` within ``optimizer.skip_synchronize()``.
        vote_if: a function of a parameter's name and the parameter; True: it is voted on. The
            others, those of parameter groups with ``"vote": False``, and those below ``min_size``
            go dense: their ``p.grad`` becomes the mean of all ranks' gradients, as with
            ``hvd.Average``, on which any optimizer steps by its own algorithm, ``hvd.SignSGD`` and
            its like too. They share buckets of their own, and ``bucket_bytes``. Ranks choose alike.
        min_size: coordinates that a parameter must have to be voted on; default 0.

    Raises:
        ValueError: contradictory or unknown arguments, or ranks that differ in parameters or
            options; then all ranks raise the same error.
        TypeError: a parameter that is not fp32, fp64, fp16 or bf16, or a choice of parameters that
            says neither True nor False.
        RuntimeError: ``hvd.init()`` was not called, or there is no MPI to vote over.
    """
    of_signs = optimizer if isinstance(optimizer, OptimizerOfSigns) else None
    op = op_for(of_signs, compression, op, Compression.none)
    if not is_vote_rule(op):
        vote, training = split_keywords(vote)
        refuse_vote_options(
            vote,
            bucket_bytes=bucket_bytes,
            grad_scaler=grad_scaler,
            vote_if=vote_if,
            min_size=min_size,
            **training,
        )
        reducing = horovod_api.DistributedOptimizer(
            optimizer,
            named_parameters=named_parameters,
            compression=compression,
            backward_passes_per_step=backward_passes_per_step,
            op=horovod_api.Average if op is None else op,
            gradient_predivide_factor=gradient_predivide_factor,
            num_groups=num_groups,
            groups=groups,
            sparse_as_dense=sparse_as_dense,
            process_set=process_set,
        )
        if isinstance(backend, HorovodBackend):
            _meet_first(reducing, backend, process_set)
        return reducing
    included = backend.rank() in backend.members(process_set)
    # Whoever is refused tells the others, who would wait for it in the opening.
    stream = backend.adhoc(process_set) if included else None
    with nullcontext() if stream is None else stream.refusing(Opening.kind, GRADIENTS):
        vote, own = keywords_for(of_signs, compression, Compression.none, vote)
        settings = gradient_settings(
            op,
            vote,
            scaler=None if grad_scaler is None else "a grad_scaler",
            bucket_bytes=bucket_bytes,
            vote_if=vote_if,
            min_size=min_size,
            passes=backward_passes_per_step,
            predivide=gradient_predivide_factor,
            num_groups=num_groups,
            groups=groups,
        )
        assert settings.options is not None
        check_bucket_bytes(settings.bucket_bytes)
        voting = wrapped(VotingOptimizer, optimizer)
        names = parameter_names(optimizer, named_parameters)
        terms = Terms(
            process_set=process_set,
            rule=make_rule(op),
            options=settings.options,
            training=settings.training,
            bucket_bytes=settings.bucket_bytes,
            groups=settings.groups,
            choice=settings.choice,
            sparse_as_dense=sparse_as_dense,
            of_signs=own,
            grad_scaler=grad_scaler,
        )
        votes = GradientVotes(optimizer, names, backward_passes_per_step, terms, id(voting))
    if included:
        votes.begin()
        voting._gradients = votes
    return voting
