"""``OneBitAdam``: Adam whose momentum travels at 1 bit a coordinate once its variance is known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw

from hvd_sign import algorithms
from hvd_sign.algorithms import Algorithm
from hvd_sign.runtime.checkpoints import STEP
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign_torch.devices import operand_of
from hvd_sign_torch.parameters import Arrays, keyed
from hvd_sign_torch.sign_optimizers import OptimizerOfSigns
from hvd_sign_torch.vote_state import STATE, as_arrays, as_tensors


class OneBitAdam(OptimizerOfSigns):
    """1-bit Adam (Tang et al. 2021, arXiv 2102.02888).

    In the first ``warmup_steps`` steps it is ``torch.optim.AdamW``, on the mean of the ranks'
    gradients, and each rank keeps a momentum m = beta1 m + (1 - beta1) g of its own gradients too.
    Then the variance v stays as it is, and p = p - lr (clip(M / (sqrt(v) + eps), -1, 1) +
    weight_decay p), both with Adam's corrections of their bias, where M is the ranks' mean momentum
    as ``hvd_sign.algorithms.OneBit`` tells it: by signs, with error feedback on both sides. What
    that leaves unsaid does not go through the momentum again, as it does in the paper, which keeps
    one for all ranks.

    The paper does not clip. All coordinates of a chunk are told as equally large: those whose
    gradients are far smaller than others' would otherwise be thrown far away, where Adam seldom
    moves any further than by ``lr``. Coordinates that have had no gradient in the warm-up have no
    variance, and stay where they are.
    Parameters of groups with ``"vote": False`` go on by Adam. By itself, in one process, it
    computes what a world of one would, bit for bit, and needs no MPI.

    Args:
        params: tensors or groups, as of any ``torch.optim.Optimizer``; groups may differ in
            ``lr`` and ``weight_decay``.
        lr: as Adam's.
        betas: beta1 of the momentum and beta2 of the variance, in [0, 1).
        eps: added to the root of the variance.
        weight_decay: decoupled, as AdamW's.
        warmup_steps: until the variance is known well: a tenth to a quarter of all steps, where
            the learning rate rises and for some time after.
        ties: what decides a coordinate without a sign; as of ``hvd_sign.VoteOptions``.
        seed: of coins; see there.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 1000,
        *,
        ties: str = "coin",
        seed: int = 0,
    ) -> None:
        if not 0 < float(eps) < math.inf:
            raise ValueError(f"eps: expected a finite number above zero, got {eps!r}")
        if not 0 <= betas[1] < 1:
            raise ValueError(f"betas: expected beta2 in [0, 1), got {betas[1]!r}")
        if not isinstance(warmup_steps, int) or isinstance(warmup_steps, bool) or warmup_steps < 1:
            raise ValueError(
                f"warmup_steps: expected a whole number of steps from 1, got {warmup_steps!r}"
            )
        given = {"betas": betas, "eps": eps, "warmup_steps": warmup_steps}
        vote = {"ties": ties, "seed": seed, "scale": "mean_abs"}
        self._begin_alone({})
        super().__init__(params, lr, weight_decay, given | vote)

    def _begin_alone(self, loaded: dict[str, torch.Tensor]) -> None:
        self._session: VoteSession | None = None
        self._votable: list[torch.Tensor] = []
        self._loaded = loaded

    def algorithm_of(self, group: dict[str, Any]) -> Algorithm:
        """1 bit of the momentum."""
        return algorithms.OneBit(group["betas"][0])

    def training_keywords(self) -> dict[str, Any]:
        """The warm-up.

        Raises:
            ValueError: parameter groups differ in it.
        """
        steps = {group["warmup_steps"] for group in self.param_groups}
        if len(steps) > 1:
            raise ValueError(
                f"param_groups: expected one 'warmup_steps' in all, got {sorted(steps)}"
            )
        return {"warmup_steps": steps.pop()}

    def _make_step(self) -> None:
        if self._verdicts is None:
            told = self._alone()
        else:
            told = {p: p.grad for p in self._verdicts if p.grad is not None}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._check(p, p in told)
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            self._step_dense(group, [p for p in given if p not in told])
            self._step_told(group, [p for p in given if p in told], told)

    def _check(self, p: torch.Tensor, told: bool) -> None:
        state = self.state.get(p, {})
        if told and "exp_avg_sq" not in state:
            raise ValueError(
                f"parameter of shape {tuple(p.shape)}: it has had no gradient in the warm-up, so "
                'that its variance is not known; put it into a group with "vote": False'
            )
        if not told and state and "exp_avg" not in state:
            raise ValueError(
                f"parameter of shape {tuple(p.shape)}: its variance is frozen, but the votes are "
                "still in their warm-up; load their part of the state_dict() too"
            )

    def _step_dense(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        if not parameters:
            return
        for p in parameters:
            if not self.state[p]:
                self.state[p]["step"] = torch.tensor(0.0)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad.to_dense() for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_told(
        self,
        group: dict[str, Any],
        parameters: list[torch.Tensor],
        told: dict[torch.Tensor, torch.Tensor],
    ) -> None:
        beta1, beta2 = group["betas"]
        lr, decay = float(group["lr"]), group["weight_decay"]
        if decay != 0 and parameters:
            torch._foreach_mul_(parameters, 1 - lr * decay)
        alike: dict[float, list[torch.Tensor]] = {}
        for p in parameters:
            state = self.state[p]
            if "exp_avg" in state:  # the last step was the warm-up's
                variance = state["exp_avg_sq"].div_(1 - beta2 ** float(state["step"]))
                variance[variance == 0] = math.inf
                del state["exp_avg"]
            state["step"] += 1
            alike.setdefault(float(state["step"]), []).append(p)
        for step, some in alike.items():
            roots = torch._foreach_sqrt([self.state[p]["exp_avg_sq"] for p in some])
            torch._foreach_add_(roots, group["eps"])
            moves = torch._foreach_div([told[p].to_dense() for p in some], roots)
            torch._foreach_div_(moves, 1 - beta1**step)
            torch._foreach_clamp_max_(moves, 1)
            torch._foreach_clamp_min_(moves, -1)
            torch._foreach_add_(some, moves, alpha=-lr)

    def _alone(self) -> dict[torch.Tensor, torch.Tensor]:
        """What one rank alone is told; nothing in the warm-up."""
        everything = [p for group in self.param_groups for p in group["params"]]
        votable = [p for p in everything if p.requires_grad or p.grad is not None]
        if not votable:
            return {}
        if self._session is None or [*map(id, votable)] != [*map(id, self._votable)]:
            self._session = self._open(votable)
        warming_up = self._session.warming_up
        told = {p: torch.empty_like(p) for p in votable if p.grad is not None}
        for ordinal, p in enumerate(votable):
            if p.grad is not None:
                self._session.ready(ordinal, operand_of(p.grad.to_dense(), told[p]))
        self._session.finish(lambda ordinal: operand_of(None, torch.empty_like(votable[ordinal])))
        return {} if warming_up else told

    def _open(self, votable: list[torch.Tensor]) -> VoteSession:
        """A session of one rank that goes on from the last one, or from what was loaded."""
        session = self.lone_session_on(votable)
        if self._session is not None:
            kept: dict[torch.Tensor, Arrays] = {}
            state = self._session.state()
            for name, array in state.items():
                if name != STEP:
                    plane, _, number = name.rpartition("/")
                    kept.setdefault(self._votable[int(number)], {})[plane] = array
            goes_on = {p: kept[p] for p in votable if p in kept}
            session.load_state({STEP: state[STEP], **keyed(goes_on, votable)})
        elif self._loaded:
            session.load_state(as_arrays(self._loaded))
        self._votable = votable
        return session

    def _kept_alone(self) -> dict[str, torch.Tensor]:
        return self._loaded if self._session is None else as_tensors(self._session.state())

    def state_dict(self) -> dict[str, Any]:
        """Adam's; and under ``"hvd_sign"``, where it steps alone, momentum and residuals."""
        state, kept = super().state_dict(), self._kept_alone()
        return {**state, STATE: kept} if kept else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict()`` returned."""
        super().load_state_dict(state_dict)
        self.vote_keywords()
        self._begin_alone(dict(state_dict.get(STATE, {})))

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles."""
        return {**super().__getstate__(), STATE: self._kept_alone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Goes on as a copy or from a pickle."""
        loaded = state.pop(STATE, {})
        super().__setstate__(state)
        self._begin_alone(loaded)
