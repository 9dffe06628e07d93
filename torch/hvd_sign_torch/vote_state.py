"""What votes keep from step to step, as a part of a ``state_dict()``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch

STATE = "hvd_sign"
"""The key of that part."""


def as_tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, torch.Tensor]:
    """A session's state as a vote's part of a ``state_dict()``."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def as_arrays(kept: Any) -> dict[str, npt.NDArray[Any]]:
    """A vote's part of a ``state_dict()``, wherever its tensors are, in numpy's terms.

    Raises:
        ValueError: it is no dictionary of tensors.
    """
    if not isinstance(kept, dict):
        raise ValueError(f"state_dict[{STATE!r}]: expected a dictionary, got {type(kept).__name__}")
    arrays = {}
    for name, tensor in kept.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"state_dict[{STATE!r}]: expected tensors by name, got {name!r} of type "
                f"{type(tensor).__name__}"
            )
        dense = tensor.detach().to_dense().cpu()
        arrays[name] = (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    return arrays
