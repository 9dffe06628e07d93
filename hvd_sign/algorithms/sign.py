"""signSGD: the signal is the gradient itself (Bernstein et al. 2018, arXiv 1802.04434)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from hvd_sign.ballots import Cast, Slot


class Sign:
    """Votes on the gradient; keeps nothing."""

    name = "sign"

    def cast(self, gradient: Any, slot: Slot) -> Cast:
        """Packs the signs of ``gradient``."""
        return slot.pack(gradient)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Nothing to go on from."""
