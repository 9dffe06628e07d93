"""Optimizers that exchange gradients before they step: what a wrapped one gains."""

from __future__ import annotations

import copyreg
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from hvd_sign_torch.gradient_hooks import GradientHooks


class ExchangingOptimizer:
    """What a wrapped optimizer gains; its class derives from a child of this and from its own.

    All else is the wrapped optimizer's: attributes are read and set there, and it makes the steps,
    so that a scheduler, a hook or a checkpoint may know either of the two. Copied or pickled it is
    that optimizer, which exchanges nothing until it is wrapped.
    """

    _wrapped: torch.optim.Optimizer
    _gradients: GradientHooks | None
    _synchronized: bool
    _should_synchronize: bool
    _counts: bool

    def __getattr__(self, name: str) -> Any:
        """Of the wrapped optimizer."""
        if name in _OWN:
            raise AttributeError(name)
        return getattr(self._wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """On the wrapped optimizer, but for what is this one's own."""
        super().__setattr__(name, value) if name in _OWN else setattr(self._wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        """From the wrapped optimizer, but for what is this one's own."""
        super().__delattr__(name) if name in _OWN else delattr(self._wrapped, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The wrapped optimizer's: the ranks' agreement can be neither copied nor stored."""
        reduced: Any = self._wrapped.__reduce_ex__(max(protocol, 2))
        make, arguments, *rest = reduced
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            make = object.__new__  # pickle would have the former make something of this class
        return make, arguments, *rest

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The wrapped optimizer's."""
        self._wrapped.__setstate__(state)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """The wrapped optimizer's; a GradScaler asks for it before it unscales and steps.

        Raises:
            AssertionError: gradients are under way.
            ValueError: the exchange would have to know the scaler.
        """
        if self._gradients is not None:
            self._gradients.check_scaler(synchronized=not self._should_synchronize)
        return bool(getattr(self._wrapped, "_step_supports_amp_scaling", False))

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
        elif self._gradients is not None:
            self._gradients.check_results()
        self._synchronized = False
        if self._counts:
            with self._stepping():
                self._wrapped.step()
        self._counts = True
        return loss

    def _stepping(self) -> AbstractContextManager[None]:
        """Within it the wrapped optimizer steps."""
        return nullcontext()

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Zeroes gradients.

        Raises:
            AssertionError: gradients are being exchanged.
        """
        self.check_between_steps("zero_grad")
        self._wrapped.zero_grad(*args, **kwargs)

    def check_between_steps(self, method: str) -> None:
        """Raises AssertionError while gradients are being exchanged."""
        if self._gradients is not None and self._gradients.under_way:
            raise AssertionError(
                f"optimizer.{method}() was called after loss.backward() but before "
                "optimizer.step() or optimizer.synchronize(). This is prohibited as it can cause "
                "a race condition."
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict()`` returned."""
        self._wrapped.load_state_dict(state_dict)

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


_OWN = frozenset({*ExchangingOptimizer.__annotations__, "step"})
"""What is not the wrapped optimizer's; a scheduler leaves a step() of its own among it."""


def wrapped(kind: type[ExchangingOptimizer], optimizer: torch.optim.Optimizer) -> Any:
    """An optimizer of a class made from ``kind`` and its own; shares everything with the latter.

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
    wrapper._wrapped = optimizer
    wrapper._gradients = None
    wrapper._synchronized = False
    wrapper._should_synchronize = True
    wrapper._counts = True
    return wrapper
