"""signSGD: the signal is the gradient itself (Bernstein et al. 2018, arXiv 1802.04434)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvd_sign.ballots import Cast, Slot


class Sign:
    """Votes on the gradient; keeps nothing."""

    name = "sign"

    def cast(self, gradient: Any, slot: Slot) -> Cast:
        """Packs the signs of ``gradient``."""
        return slot.pack(gradient)
