"""What every algorithm offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    from hvd_sign.ballots import Cast, Slot


class Algorithm(Protocol):
    """Chooses the signal whose sign is voted on."""

    name: str

    def cast(self, gradient: Any, slot: Slot) -> Cast:
        """Updates its state for the slot's tensor from ``gradient`` and packs the signal's signs.

        Args:
            gradient: contiguous fp32, fp64, fp16 or bf16 array in host memory.
            slot: where the tensor's blocks go.
        """
        ...

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What it keeps between steps, for a checkpoint: arrays by names of its own choice."""
        ...

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from what ``state()`` returned.

        Raises:
            KeyError: something is missing.
        """
        ...
