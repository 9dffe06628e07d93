"""``SignSGD``, ``Signum`` and ``Lion``: optimizers whose steps have the size of the learning rate.

Wrapped by ``hvd.DistributedOptimizer`` they vote, each rank by its own algorithm. By themselves,
in one process, they compute what a world of one would, bit for bit, and need no MPI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hvd_sign import algorithms
from hvd_sign.algorithms import Algorithm
from hvd_sign.core.buckets import TensorSpec, check_dtype
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.training import TrainingOptions
from hvd_sign.frontend.sign_optimizers import OPTIONS, check_rate
from hvd_sign.runtime.alone import lone_session
from hvd_sign.runtime.checkpoints import STEP
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign_torch.devices import dtype_name, operand_of


class OptimizerOfSigns(torch.optim.Optimizer):
    """Votes by itself when it is wrapped. Its groups may differ in ``lr`` and ``weight_decay``."""

    def __init__(
        self, params: Any, lr: float, weight_decay: float, defaults: dict[str, Any]
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            check_rate(name, value)
        # Whose p.grad ranks have decided; None: it steps alone.
        self._verdicts: frozenset[torch.Tensor] | None = None
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **defaults})
        self.vote_keywords()

    def algorithm_of(self, group: dict[str, Any]) -> Algorithm:
        """The algorithm of a parameter group's hyper-parameters."""
        raise NotImplementedError

    def vote_keywords(self) -> dict[str, Any]:
        """By which keywords of ``hvd_sign.VoteOptions`` a vote does what this optimizer does.

        Raises:
            ValueError: parameter groups differ in them, or they cannot be.
        """
        kept = [
            {"algorithm": self.algorithm_of(group), **{name: group[name] for name in OPTIONS}}
            for group in self.param_groups
        ]
        for other in kept:
            if other != kept[0]:
                raise ValueError(
                    "param_groups: expected groups that differ in 'lr' and 'weight_decay' alone, "
                    f"got {kept[0]} and {other}"
                )
        VoteOptions(**kept[0])
        return kept[0]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps on gradients, or on what ranks have decided.

        Args:
            closure: evaluates the model anew and returns the loss.

        Returns:
            The closure's result.

        Raises:
            TypeError: a parameter that is not fp32, fp64, fp16 or bf16.
            ValueError: a parameter cannot be stepped on now; nothing was moved.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._make_step()
        return loss

    def _make_step(self) -> None:
        raise NotImplementedError

    def lone_session_on(self, parameters: Sequence[torch.Tensor]) -> VoteSession:
        """A session of one rank, by this optimizer's keywords.

        Raises:
            TypeError: a parameter that is not fp32, fp64, fp16 or bf16.
        """
        specs = []
        for ordinal, p in enumerate(parameters):
            name, dtype = f"parameter {ordinal}", dtype_name(p)
            check_dtype(name, dtype)
            specs.append(TensorSpec(name, tuple(p.shape), dtype, ordinal))
        training = TrainingOptions(**self.training_keywords())
        return lone_session(specs, VoteOptions(**self.vote_keywords()), training)

    def training_keywords(self) -> dict[str, Any]:
        """By which keywords of ``hvd_sign.TrainingOptions`` it does."""
        return {}

    @contextmanager
    def on_verdicts(self, parameters: Iterable[torch.Tensor]) -> Iterator[None]:
        """Within it ``step()`` takes ``p.grad`` of some parameters for a verdict."""
        self._verdicts = frozenset(parameters)
        try:
            yield
        finally:
            self._verdicts = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Goes on as a copy or from a pickle."""
        super().__setstate__(state)
        self._verdicts = None


class SignOptimizer(OptimizerOfSigns):
    """Steps by p = p - lr (V + weight_decay p), where V are the signs of an algorithm's signal.

    What the algorithm keeps stands in ``state``, as other optimizers' does.
    """

    def __init__(
        self, params: Any, lr: float, weight_decay: float, defaults: dict[str, Any]
    ) -> None:
        self._session: VoteSession | None = None
        self._voted: list[torch.Tensor] = []
        self._asked: dict[str, Any] = {}
        self._shown: torch.Tensor | None = None  # the step in ``state``
        super().__init__(params, lr, weight_decay, defaults)

    def _make_step(self) -> None:
        for p in self._verdicts or ():
            self.state.pop(p, None)  # of a time before ranks voted
        for group, parameters, verdicts in self._decided():
            lr, decay = group["lr"], group["weight_decay"]
            if decay != 0:
                torch._foreach_mul_(parameters, 1 - lr * decay)
            torch._foreach_add_(parameters, verdicts, alpha=-float(lr))

    def _decided(self) -> Iterator[tuple[dict[str, Any], list[torch.Tensor], list[torch.Tensor]]]:
        """Each group, its parameters that have gradients, and their verdicts."""
        decided = self._decide()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                yield group, parameters, [decided.get(p, p.grad).to_dense() for p in parameters]

    def _decide(self) -> dict[torch.Tensor, torch.Tensor]:
        """Votes alone, on what ranks have not decided."""
        everything = [p for group in self.param_groups for p in group["params"]]
        undecided = [p for p in everything if p not in (self._verdicts or ())]
        voted = [p for p in undecided if p.requires_grad or p.grad is not None]
        if not voted:
            return {}
        asked = self.vote_keywords()  # which schedulers may change
        shown = {id(self.state[p].get(STEP, self._shown)) for p in voted if p in self.state}
        if (
            self._session is None
            or shown - {id(self._shown)}  # somebody has put another state there
            or asked != self._asked
            or [*map(id, voted)] != [*map(id, self._voted)]
        ):
            self._session, self._asked = self._open(voted), asked
        verdicts = {p: torch.empty_like(p) for p in voted if p.grad is not None}
        for ordinal, p in enumerate(voted):
            if p.grad is not None:
                self._session.ready(ordinal, operand_of(p.grad.to_dense(), verdicts[p]))
        self._session.finish(lambda ordinal: operand_of(None, torch.empty_like(voted[ordinal])))
        self._show_state(self._session)
        return verdicts

    def _open(self, voted: list[torch.Tensor]) -> VoteSession:
        """A session of one rank that goes on from ``state``."""
        session = self.lone_session_on(voted)
        steps = [int(kept[STEP]) for kept in self.state.values() if STEP in kept]
        arrays = {STEP: np.array(max(steps, default=0))}
        for ordinal, p in enumerate(voted):
            for name, kept in self.state.get(p, {}).items():
                if name != STEP:
                    arrays[f"{name}/{ordinal}"] = kept.detach().reshape(-1).cpu().numpy()
        session.load_state(arrays)
        self._voted = voted
        return session

    def _show_state(self, session: VoteSession) -> None:
        """Shows what the session keeps in ``state``: the arrays themselves."""
        self._shown = step = torch.tensor(float(session.common_state()[STEP]))
        for p in self._voted:
            if p.grad is not None or p in self.state:
                self.state[p][STEP] = step
        for name, array in session.held().items():
            plane, _, ordinal = name.rpartition("/")
            p = self._voted[int(ordinal)]
            self.state[p][plane] = torch.as_tensor(array).view(p.shape)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict()`` returned; arrays keep their element types."""
        super().load_state_dict(state_dict)
        self.vote_keywords()
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, parameters, strict=True):
            for name, kept in state_dict["state"].get(number, {}).items():
                self.state[p][name] = kept.clone() if name == STEP else kept.to(p.device, copy=True)
        self._session = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Goes on as a copy or from a pickle."""
        super().__setstate__(state)
        self._session, self._voted, self._asked, self._shown = None, [], {}, None


class SignSGD(SignOptimizer):
    """signSGD: steps by the sign of the gradient (Bernstein et al. 2018, arXiv 1802.04434).

    Args:
        params: tensors or groups, as of any ``torch.optim.Optimizer``.
        lr: what each coordinate moves in a step.
        weight_decay: decoupled: p = p - lr (V + weight_decay p).
        ties: what decides a coordinate without a sign; as of ``hvd_sign.VoteOptions``.
        seed: of coins; see there.
        scale: see there.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        *,
        ties: str = "coin",
        seed: int = 0,
        scale: str = "none",
    ) -> None:
        super().__init__(params, lr, weight_decay, {"ties": ties, "seed": seed, "scale": scale})

    def algorithm_of(self, group: dict[str, Any]) -> Algorithm:
        """The gradient."""
        return algorithms.Sign()


class Signum(SignOptimizer):
    """Signum: steps by the sign of the momentum (Bernstein et al. 2019, arXiv 1810.05291).

    v = beta v + (1 - beta) g; V = sign(v), or the ranks' vote on it; p = p - lr (V + weight_decay
    p). A learning rate that suits SGD with momentum is 100 times too large.

    Args:
        params: tensors or groups, as of any ``torch.optim.Optimizer``.
        lr: what each coordinate moves in a step.
        beta: in [0, 1).
        weight_decay: decoupled, as AdamW's.
        ties: what decides a coordinate without a sign; as of ``hvd_sign.VoteOptions``.
        seed: of coins; see there.
        scale: see there.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        *,
        ties: str = "coin",
        seed: int = 0,
        scale: str = "none",
    ) -> None:
        given = {"beta": beta, "ties": ties, "seed": seed, "scale": scale}
        super().__init__(params, lr, weight_decay, given)

    def algorithm_of(self, group: dict[str, Any]) -> Algorithm:
        """Momentum by ``beta``."""
        return algorithms.Signum(group["beta"])


class Lion(SignOptimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675), by vote as Liu et al. 2024, arXiv 2404.00438.

    V = sign(beta1 m + (1 - beta1) g), or the ranks' vote on it; m = beta2 m + (1 - beta2) g;
    p = p - lr (V + weight_decay p).

    Args:
        params: tensors or groups, as of any ``torch.optim.Optimizer``.
        lr: what each coordinate moves in a step; a third to a tenth of AdamW's suits.
        betas: beta1 and beta2, in [0, 1).
        weight_decay: decoupled; three to ten times AdamW's suits.
        ties: what decides a coordinate without a sign; as of ``hvd_sign.VoteOptions``.
        seed: of coins; see there.
        scale: see there.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        ties: str = "coin",
        seed: int = 0,
        scale: str = "none",
    ) -> None:
        given = {"betas": betas, "ties": ties, "seed": seed, "scale": scale}
        super().__init__(params, lr, weight_decay, given)

    def algorithm_of(self, group: dict[str, Any]) -> Algorithm:
        """By ``betas``."""
        return algorithms.Lion(*group["betas"])
