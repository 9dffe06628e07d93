"""What an algorithm keeps for a bucket's tensors from step to step; owned by their session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import IDENTITY, RESIDUAL, VERDICT_RESIDUAL, Algorithm, EfSign
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.devices.base import Operand, TensorState
from hvd_sign.devices.host import HOST


class States:
    """The states of some tensors, made when their first gradients come: zeros, where they live.

    Args:
        algorithm: whose.
        specs: the tensors, in order.
        tentative: steps may not count, so that what they make is kept apart until it is known.
        exact: zeros are not voted on, as under ``ties="zero"``.

    An algorithm that averages has residuals of verdicts too: fp32 in host memory, of whole tensors,
    though only what this rank tallies is ever touched, and so takes memory.
    """

    def __init__(
        self, algorithm: Algorithm, specs: Sequence[TensorSpec], *, tentative: bool, exact: bool
    ) -> None:
        self._algorithm = algorithm
        self._specs = specs
        self._tentative = tentative
        self._exact = exact
        self._states: list[TensorState | None] = [None] * len(specs)
        # What was loaded before it was known where the tensors live.
        self._loaded: dict[int, dict[str, npt.NDArray[Any]]] = {}
        self._of_verdicts: States | None = None
        if algorithm.averages:
            narrow = [replace(spec, dtype="float32") for spec in specs]
            self._of_verdicts = States(EfSign(), narrow, tentative=tentative, exact=exact)

    def unsaid(self) -> list[tuple[Any, ...]]:
        """By tensor (kept, next, sent, next_sent), as tallies of means take them, and make them."""
        assert self._of_verdicts is not None
        made = self._of_verdicts.of([Operand(HOST, None, None)] * len(self._specs))
        return [state.fuse(IDENTITY, 1.0)[-1] for state in made if state is not None]

    def of(self, operands: Sequence[Operand]) -> list[TensorState | None]:
        """The states for a step's operands; None where there is nothing to be kept."""
        if self._algorithm.keeps:
            for position, operand in enumerate(operands):
                if self._states[position] is None and not operand.joined and not operand.raw:
                    self._states[position] = self._make(position, operand)
        return self._states

    def _make(self, position: int, operand: Operand) -> TensorState:
        spec = self._specs[position]
        like = operand.out if operand.signal is None else operand.signal

        def planes() -> dict[str, Any]:
            return {name: operand.device.zeros(spec, like) for name in self._algorithm.keeps}

        state = TensorState(operand.device, planes(), planes() if self._tentative else None)
        for name, numbers in self._loaded.pop(position, {}).items():
            state.device.from_host(numbers, state.current[name])
        return state

    def end(self, *, counts: bool) -> None:
        """Ends a step: what it made becomes current, or is forgotten."""
        for state in self._states:
            if state is not None:
                state.end(counts=counts)
        if self._of_verdicts is not None:
            self._of_verdicts.end(counts=counts)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Copies for a checkpoint, by plane and the tensor's ordinal: ``"momentum/3"``."""
        found = {}
        for position, (spec, state) in enumerate(zip(self._specs, self._states, strict=True)):
            if state is not None:
                for name in state.current:
                    found[f"{name}/{spec.ordinal}"] = state.numbers(name, exact=self._exact)
            else:
                for name, numbers in self._loaded.get(position, {}).items():
                    found[f"{name}/{spec.ordinal}"] = numbers.copy()
        if self._of_verdicts is not None:
            found |= _renamed(self._of_verdicts.arrays(), RESIDUAL, VERDICT_RESIDUAL)
        return found

    def held(self) -> dict[str, Any]:
        """The planes themselves, where they live, by plane and the tensor's ordinal."""
        return {
            f"{name}/{spec.ordinal}": state.current[name]
            for spec, state in zip(self._specs, self._states, strict=True)
            if state is not None
            for name in self._algorithm.planes
        }

    def check(self, arrays: Mapping[str, npt.NDArray[Any]]) -> set[str]:
        """Checks those of ``arrays`` that ``load()`` would take; changes nothing.

        Returns:
            Their names.

        Raises:
            ValueError: one is no array of its tensor's size, of finite numbers; or a tensor has
                only some of the planes.
        """
        known = set()
        for spec in self._specs:
            names = {f"{plane}/{spec.ordinal}" for plane in self._algorithm.keeps}
            found = names & arrays.keys()
            if found and found != names:
                raise ValueError(
                    f"state of {spec.name!r}: expected all of {sorted(names)} or none, got "
                    f"{sorted(found)}"
                )
            for name in found:
                check_numbers(f"{name!r}, of {spec.name!r}", arrays[name], spec.size)
            known |= found
        if self._of_verdicts is not None:
            theirs = self._of_verdicts.check(_renamed(arrays, VERDICT_RESIDUAL, RESIDUAL))
            known |= _renamed(dict.fromkeys(theirs), RESIDUAL, VERDICT_RESIDUAL).keys()
        return known

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from what ``arrays()`` returned, checked; what is not in it begins at zero."""
        for position, spec in enumerate(self._specs):
            names = {plane: f"{plane}/{spec.ordinal}" for plane in self._algorithm.keeps}
            self._states[position] = None
            self._loaded[position] = {
                plane: np.array(arrays[name]) for plane, name in names.items() if name in arrays
            }
        if self._of_verdicts is not None:
            self._of_verdicts.load(_renamed(arrays, VERDICT_RESIDUAL, RESIDUAL))


def _renamed(arrays: Mapping[str, Any], plane: str, to: str) -> dict[str, Any]:
    """Those of a plane, under another name."""
    return {
        f"{to}/{name.removeprefix(plane + '/')}": array
        for name, array in arrays.items()
        if name.startswith(f"{plane}/")
    }


def check_numbers(what: str, value: Any, size: int) -> None:
    """Raises ValueError unless ``value`` has so many numbers, all finite."""
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf":
        raise ValueError(f"state {what}: expected numbers, got {numbers.dtype}")
    if numbers.size != size:
        raise ValueError(f"state {what}: expected {size} numbers, got {numbers.size}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"state {what}: expected finite numbers, got NaN or Inf")
