"""The votes on an optimizer's gradients, held while backward goes on."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable
from zlib import crc32

import numpy as np
import torch

from hvd_sign.core.buckets import BLOCK, TensorSpec, check_dtype, group_positions
from hvd_sign.devices import HOST, Operand
from hvd_sign.frontend.arguments import free_of_loss_scale
from hvd_sign.runtime.comparing import Comparison, options_text
from hvd_sign.runtime.serving import leave_together
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign_torch.backend import backend
from hvd_sign_torch.checksums import checksums
from hvd_sign_torch.clipping import clip_values, norm_factor
from hvd_sign_torch.devices import dtype_name, operand_of
from hvd_sign_torch.gradient_hooks import GradientHooks
from hvd_sign_torch.parameters import Arrays, keyed, names_of_all, requiring
from hvd_sign_torch.terms import Terms

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
        terms: how they are voted on.
        scaled_as: as what the scaler knows the optimizer: its id().

    Attributes:
        specs: of those that require gradients, in order.
        verdicts: those whose ``p.grad`` the last exchange made a verdict; others' are means.
        session: what holds the votes, once they have begun.
        number: how many have begun before, on every rank that began as many.

    Raises:
        TypeError: a parameter that cannot be voted on, or a choice that is none.
        ValueError: the terms' groups are none.
    """

    session: VoteSession
    number: int
    clipping = "clip_value= and clip_norm= of hvd.DistributedOptimizer clip"

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: dict[torch.Tensor, str],
        passes: int,
        terms: Terms,
        scaled_as: int,
    ) -> None:
        super().__init__(optimizer, names, passes)
        self.terms = terms
        self.grad_scaler = terms.grad_scaler
        self._optimizer = optimizer
        self._scaled_as = scaled_as
        self._clip_factor: float | None = None  # of this step's gradients, once it is known
        count = len(self._parameters)
        self.specs = [TensorSpec(PRESENCE, (count, BLOCK), "float32", LAST)] if count else []
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        for ordinal, p in enumerate(self._parameters):
            name, dtype = names[p], dtype_name(p)
            check_dtype(f"parameter {name!r}", dtype)
            votes = terms.choice.votes(name, p, p.numel(), groups[p])
            self.specs.append(TensorSpec(name, tuple(p.shape), dtype, ordinal, votes))
        told = len(self.specs) - count
        members = group_positions(terms.groups, self._parameters, torch.Tensor, "torch.Tensor")
        self._groups = members and [[told + i for i in group] for group in members]
        self.verdicts: list[torch.Tensor] = []
        self._begun = self._changed = False
        self._aside: dict[torch.Tensor, Arrays] = {}  # of parameters that are not voted on now
        self._presence = np.zeros((count, BLOCK), np.float32)
        self._complete = 0
        self._apart: dict[int, torch.Tensor] = {}  # verdicts that are not written to p.grad
        self._scale: float | None = None
        self._shrinking_told = False

    def begin(self) -> None:
        """Votes from now on. Collective.

        Raises:
            ValueError: ranks differ in what they vote on, or in how; the same on every rank.
        """
        self.number = next(_numbers)
        self.open()
        self.hook()

    def open(self) -> None:
        """Votes in a new session, among the ranks that there are now. Collective over them."""
        terms = self.terms
        self.session = session = backend.session(
            terms.process_set,
            self.specs,
            terms.rule,
            terms.options,
            bucket_bytes=terms.bucket_bytes,
            groups=self._groups,
            told=(LAST,),
            training=terms.training,
        )
        session.on_reset(self._restore)
        if terms.training.check_every and self.specs:
            names = [f"parameter {self._names[p]!r}" for p in self._parameters]
            session.comparison = Comparison(
                session.stream.transport,
                terms.training.check_every,
                [*names, "frozen parameters", "the options of parameter groups"],
                self._checksums,
            )
        self._restore()

    def _checksums(self) -> list[int]:
        """Of what the comparison's names say."""
        groups = (options_text(group, {"params"}) for group in self._optimizer.param_groups)
        rest = repr(checksums(self._frozen)), repr(list(groups))
        return [*checksums(self._parameters), *(crc32(text.encode()) for text in rest)]

    def state(self) -> Arrays:
        """What a checkpoint keeps, see ``VoteSession.state()``, for the parameters as they are."""
        common = self.session.common_state()
        return {**common, **keyed(self._kept(), requiring(self._optimizer))}

    def _kept(self) -> dict[torch.Tensor, Arrays]:
        """What the algorithm keeps for each parameter, by plane."""
        kept = dict(self._aside)
        common = self.session.common_state()
        for name, array in self.session.state().items():
            if name not in common:
                plane, _, ordinal = name.rpartition("/")
                kept.setdefault(self._parameters[int(ordinal)], {})[plane] = array
        return kept

    def differs(self) -> bool:
        """Whether other parameters require gradients now than those that are voted on."""
        now = requiring(self._optimizer)
        return [*map(id, now)] != [*map(id, self._parameters)]

    def outdated(self) -> bool:
        """Whether that is so, and no gradient of this step is being voted on."""
        return self._changed if self._begun else self.differs()

    def reopened(self) -> GradientVotes:
        """Votes on the parameters as they are now, which go on from these. Collective.

        Raises:
            DisagreementError: other ranks' parameters have not changed, or otherwise.
            TypeError: a parameter that cannot be voted on.
        """
        self.check_retired()
        names = names_of_all(self._optimizer, self._names)
        made = GradientVotes(self._optimizer, names, self.passes, self.terms, self._scaled_as)
        kept, common = self._kept(), self.session.common_state()
        leave_together(self.session)
        backend.end(self.session)
        made.begin()
        self.retire()
        voted = {made._parameters[s.ordinal] for s in made.specs if s.vote and s.ordinal != LAST}
        made._aside = {p: arrays for p, arrays in kept.items() if p not in voted}
        goes_on = {p: arrays for p, arrays in kept.items() if p in voted}
        made.session.load_state({**common, **keyed(goes_on, made._parameters)})
        return made

    def check_frozen(self) -> None:
        """Nothing is wrong with a change of parameters: the next step's votes begin anew."""

    def exchange(self) -> bool:
        """Votes on the rest, waits, and leaves verdicts, or means, in ``p.grad``.

        Returns:
            Whether the step counts, see ``VoteSession.finish``.
        """
        voted = [] if self.session.warming_up else [s.ordinal for s in self.specs if s.vote]
        self.verdicts = [self._parameters[ordinal] for ordinal in voted if ordinal != LAST]
        if not self._clipped():
            self._clip_by_norm()
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
            if not self._begun:
                self._begun, self._changed = True, self.differs()
            super().gradient_ready(ordinal)

    def complete(self, ordinal: int) -> None:
        """Hands the gradient to the vote, or all of them once their norm is known."""
        if self._changed:
            return
        self._complete += 1
        complete = self._complete == len(self._parameters)
        if self._clipped():
            self.session.ready(ordinal, self._operand(ordinal))
        elif complete:
            self._clip_by_norm()
            for waiting in reversed(range(len(self._parameters))):
                self.session.ready(waiting, self._missing(waiting))
        if complete:
            self.session.ready(LAST, self._missing(LAST))

    def _clipped(self) -> bool:
        """Whether a gradient may be voted on when it has come: no norm has to be known first."""
        return self.terms.training.clip_norm is None or self._clip_factor is not None

    def _clip_by_norm(self) -> None:
        assert self.terms.training.clip_norm is not None
        gradients = (p.grad for p in self._parameters if p.grad is not None)
        self._clip_factor = norm_factor(
            gradients, self.terms.training.clip_norm * self._loss_scale()
        )

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
        factor = _common_factor(p.grad for p in self.verdicts if p.grad is not None)
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
        self._clip_factor = None
        self._begun = self._changed = False
        self.restart()

    def _operand(self, ordinal: int) -> Operand:
        parameter = self._parameters[ordinal]
        assert parameter.grad is not None
        sparse = parameter.grad.is_sparse
        if sparse and not self.terms.sparse_as_dense:
            raise ValueError(
                f"parameter {self._names[parameter]!r}: a vote needs a dense "
                "gradient, got a sparse one; give DistributedOptimizer sparse_as_dense=True"
            )
        gradient = self.hand_over(ordinal)
        if sparse:
            gradient = self._apart[ordinal] = gradient.to_dense()
        if self.terms.training.clip_value is not None:
            clip_values(gradient, self.terms.training.clip_value * self._loss_scale())
        if self._clip_factor is not None and self._clip_factor < 1:
            gradient *= self._clip_factor
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
        if not free_of_loss_scale(self.session.options):
            return 1.0, 1.0
        return self._loss_scale(), 1 / self._loss_scale()

    def _loss_scale(self) -> float:
        """What the gradients carry."""
        if self._scale is None:  # reading it waits for the device: once a step
            self._scale = 1.0 if self.grad_scaler is None else float(self.grad_scaler.get_scale())
        return self._scale


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
