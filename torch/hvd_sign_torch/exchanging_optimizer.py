"""Optimizers that exchange gradients before they step: what a wrapped one gains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hvd_sign_torch.gradient_hooks import GradientHooks


class ExchangingOptimizer:
    """What a wrapped optimizer gains; its class derives from a child of this and from its own."""

    _gradients: GradientHooks | None
    _synchronized: bool
    _should_synchronize: bool
    _counts: bool

    def synchronize(self) -> None:
        """Waits for the gradients' exchange and leaves what comes of it in ``p.grad``."""
        if self._gradients is not None:
            self._counts = self._gradients.finish()
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
        """Waits for the exchange, then lets the wrapped optimizer step on what came of it.

        Args:
            closure: evaluated first, as it computes the gradients to exchange.

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
                    "optimizer.synchronize(). This exchanges gradients anew; use "
                    "optimizer.skip_synchronize() if you call optimizer.synchronize().",
                    stacklevel=2,
                )
            if self._gradients is not None and self._gradients.grad_scaler is not None:
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
            AssertionError: gradients are being exchanged.
        """
        if self._gradients is not None and self._gradients.under_way:
            raise AssertionError(
                "optimizer.zero_grad() was called after loss.backward() but before "
                "optimizer.step() or optimizer.synchronize(). This is prohibited as it can cause "
                "a race condition."
            )
        super().zero_grad(*args, **kwargs)  # type: ignore[misc]

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Changes how many backward passes make a gradient."""
        if self._gradients is not None:
            self._gradients.set_passes(passes)

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
        """The wrapped optimizer without the exchange; shares parameters and state."""
        base: Any = type(self).__bases__[1]
        plain: torch.optim.Optimizer = base.__new__(base)
        # A scheduler leaves a step() of the wrapper among the attributes.
        plain.__dict__.update({k: v for k, v in self.__dict__.items() if k != "step"})
        return plain


def wrapped(kind: type[ExchangingOptimizer], optimizer: torch.optim.Optimizer) -> Any:
    """An optimizer of a class made from ``kind`` and its own; shares parameters and state.

    Raises:
        ValueError: it is wrapped already, or LBFGS.
    """
    if isinstance(optimizer, ExchangingOptimizer):
        raise ValueError("optimizer: it is wrapped by hvd.DistributedOptimizer already")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: LBFGS evaluates several gradients a step, of which one would be exchanged; "
            "expected a first-order optimizer"
        )
    base = type(optimizer)
    made: Any = type(base.__name__, (kind, base), {})
    wrapper = made.__new__(made)
    # A scheduler leaves a step() of the optimizer's own among the attributes, which would hide
    # the wrapper's.
    wrapper.__dict__.update({k: v for k, v in optimizer.__dict__.items() if k != "step"})
    wrapper._synchronized = False
    wrapper._should_synchronize = True
    wrapper._counts = True
    wrapper._gradients = None
    return wrapper
