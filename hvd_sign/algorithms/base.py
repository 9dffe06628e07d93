"""What every algorithm offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

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
