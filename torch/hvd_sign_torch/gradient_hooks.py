"""Gradients as they come: hooks on parameters, backward passes, and whose turn it is."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

_holders: weakref.WeakValueDictionary[int, GradientHooks] = weakref.WeakValueDictionary()
"""Who exchanges a parameter's gradient, by the parameter's id(): its holder keeps it alive."""


class GradientHooks(ABC):
    """What is done with an optimizer's gradients from backward to step.

    Args:
        optimizer: whose parameters' gradients are exchanged.
        names: each parameter's.
        passes: backward passes before a gradient is complete.

    Attributes:
        grad_scaler: whose scale the gradients carry, and what comes of them then carries too.
        clipping: says, in a sentence on changed gradients, what clips them.
    """

    grad_scaler: Any = None
    clipping = "no option clips"

    def __init__(
        self, optimizer: torch.optim.Optimizer, names: dict[torch.Tensor, str], passes: int
    ) -> None:
        self.passes = passes
        self._names = names
        self._retired = False
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        self._parameters = [p for p in everything if p.requires_grad]
        self._frozen = [p for p in everything if not p.requires_grad]
        self._passes_left = [passes] * len(self._parameters)
        self._handed: dict[int, tuple[torch.Tensor, int]] = {}

    def hook(self) -> None:
        """Begins to listen; whoever listened to a parameter before is retired."""
        hooks = [
            p.register_post_accumulate_grad_hook(_hook(weakref.ref(self), ordinal))
            for ordinal, p in enumerate(self._parameters)
        ]
        # As Horovod's, they end with the optimizer, so that another can be built on the model.
        self._unhook = weakref.finalize(self, _remove, hooks)
        for p in self._parameters:
            earlier = _holders.get(id(p))
            if earlier is not None:
                earlier.retire()
            _holders[id(p)] = self

    @property
    def under_way(self) -> bool:
        """Whether gradients of a step have come and have not been exchanged to the end."""
        return any(left != self.passes for left in self._passes_left)

    def set_passes(self, passes: int) -> None:
        """Changes the number of backward passes a step."""
        if passes <= 0:
            raise ValueError("backward_passes_per_step must be > 0")
        self.passes = passes
        self.restart()

    def restart(self) -> None:
        """Waits for new gradients."""
        self._passes_left = [self.passes] * len(self._parameters)
        self._handed = {}

    def finish(self) -> bool:
        """Exchanges the rest, waits, and leaves the results in ``p.grad``.

        Returns:
            Whether the step counts.

        Raises:
            RuntimeError: another optimizer exchanges the gradients now; or, after the exchange so
                that no rank waits for this one, gradients were changed while it was under way.
            ValueError: a frozen parameter has come to require a gradient.
        """
        self.check_retired()
        touched = self.touched()
        counts = self.exchange()
        self.check_frozen()
        if touched:
            raise RuntimeError(
                f"p.grad of {_listed(touched)} was changed or replaced after backward() and before "
                "step(), while ranks exchanged it; this rank does not step. Change gradients after "
                "optimizer.synchronize(), then call optimizer.step() within "
                "optimizer.skip_synchronize(). What is clipped there is the result of the "
                f"exchange; {self.clipping} gradients before it"
            )
        return counts

    @abstractmethod
    def exchange(self) -> bool:
        """Exchanges the rest, waits, and leaves the results in ``p.grad``; whether it counts."""

    @abstractmethod
    def complete(self, ordinal: int) -> None:
        """A parameter's gradient has had all its backward passes."""

    def check_scaler(self, *, synchronized: bool) -> None:
        """Raises unless a GradScaler may unscale and step now.

        Args:
            synchronized: the exchange has ended, and its results are what is to be unscaled.

        Raises:
            AssertionError: they are under way.
        """
        if not synchronized:
            raise AssertionError(
                "scaler.step(optimizer): it would unscale gradients that ranks are exchanging; "
                "call optimizer.synchronize() before scaler.unscale_(optimizer), and "
                "scaler.step(optimizer) within optimizer.skip_synchronize()."
            )

    def check_results(self) -> None:  # noqa: B027, most have nothing to say
        """Looks at what becomes a step, which may have been changed after the exchange."""

    def hand_over(self, ordinal: int) -> torch.Tensor:
        """Takes a parameter's gradient for the exchange, which alone may change it until its end.

        Returns:
            The gradient, to be read and written.
        """
        parameter = self._parameters[ordinal]
        assert parameter.grad is not None
        gradient: torch.Tensor = parameter.grad.detach()
        if not gradient.is_sparse:
            # Parts of one tensor, as autograd makes them, share its version counter. p.grad gets
            # one of its own, which what the exchange writes does not move either.
            parameter.grad = gradient.data
        handed = parameter.grad
        self._handed[ordinal] = handed, handed._version
        return gradient

    def touched(self) -> list[str]:
        """Names of parameters whose gradients are no more what backward made of them."""
        changed = [
            ordinal
            for ordinal, (gradient, version) in self._handed.items()
            if self._parameters[ordinal].grad is not gradient or gradient._version != version
        ]
        lost = [
            ordinal
            for ordinal, left in enumerate(self._passes_left)
            if 0 < left < self.passes and self._parameters[ordinal].grad is None
        ]
        return [self._names[self._parameters[ordinal]] for ordinal in sorted(changed + lost)]

    def check_retired(self) -> None:
        """Raises RuntimeError if another optimizer exchanges the gradients now."""
        if self._retired:
            raise RuntimeError(
                "this optimizer exchanges gradients no more: hvd.DistributedOptimizer has wrapped "
                "its parameters anew"
            )

    def check_frozen(self) -> None:
        """Raises ValueError if a parameter that was frozen when it was wrapped is so no more."""
        thawed = [self._names[p] for p in self._frozen if p.requires_grad]
        if thawed:
            raise ValueError(
                "requires_grad: expected parameters that were frozen when hvd.DistributedOptimizer "
                f"wrapped them to stay so, got gradients for {', '.join(thawed)}, which nobody "
                "exchanges; wrap the optimizer anew after unfreezing"
            )

    def retire(self) -> None:
        """Another optimizer exchanges the gradients from now on."""
        self._unhook()
        self._retired = True

    def gradient_ready(self, ordinal: int) -> None:
        """Counts a backward pass of a parameter; called by its hook."""
        if self._passes_left[ordinal] <= 0:
            raise AssertionError(
                "Gradients were computed more than backward_passes_per_step times before "
                "call to step(). Increase backward_passes_per_step to accumulate gradients "
                "locally."
            )
        self._passes_left[ordinal] -= 1
        if self._passes_left[ordinal] == 0:
            self.complete(ordinal)


def _hook(listener: weakref.ref[GradientHooks], ordinal: int) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        alive = listener()
        if alive is not None:
            alive.gradient_ready(ordinal)

    return hook


def _remove(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()


def _listed(names: list[str]) -> str:
    """Names for a sentence: the first few, and how many more."""
    more = f" and {len(names) - 3} others" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
