"""Parameters as Horovod's users name and group them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy.typing as npt
import torch

Arrays = dict[str, npt.NDArray[Any]]


def parameter_names(
    optimizer: torch.optim.Optimizer, named_parameters: Any
) -> dict[torch.Tensor, str]:
    """Each parameter's name; made from its position where the user gave none."""
    own = [
        (f"allreduce.noname.{i}.{j}", p)
        for i, group in enumerate(optimizer.param_groups)
        for j, p in enumerate(group["params"])
    ]
    named = own if named_parameters is None else list(named_parameters)
    if any(not isinstance(item, tuple) for item in named):
        raise ValueError(
            "named_parameters should be a sequence of tuples (name, parameter), usually produced "
            "by model.named_parameters()."
        )
    counts = Counter(name for name, _ in named)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise ValueError(
            "Parameter names in named_parameters must be unique. Found duplicates: "
            + ", ".join(repeated)
        )
    names = {p: name for name, p in named}
    nameless = [name for name, p in own if p not in names]
    if nameless:
        raise ValueError(
            "named_parameters was specified, but one or more model parameters were not named: "
            "the optimizer's " + ", ".join(nameless)
        )
    return names


def names_of_all(
    optimizer: torch.optim.Optimizer, names: dict[torch.Tensor, str]
) -> dict[torch.Tensor, str]:
    """Names of all parameters, also of those that were added since names were given."""
    given = {
        p: f"allreduce.noname.{i}.{j}"
        for i, group in enumerate(optimizer.param_groups)
        for j, p in enumerate(group["params"])
    }
    return given | names


def requiring(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parameters that require gradients, in order."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def keyed(kept: dict[torch.Tensor, Arrays], parameters: list[torch.Tensor]) -> Arrays:
    """What is kept for parameters, as sessions name it: ``"momentum/3"``."""
    return {
        f"{plane}/{ordinal}": array
        for ordinal, p in enumerate(parameters)
        for plane, array in kept.get(p, {}).items()
    }


def zeros(like: torch.Tensor, sparse_dims: int | None) -> torch.Tensor:
    """Zeros, dense or sparse in the first dimensions."""
    if sparse_dims is None:
        return torch.zeros_like(like)
    nowhere = torch.empty(sparse_dims, 0, dtype=torch.int64, device=like.device)
    nothing = like.new_empty(0, *like.shape[sparse_dims:])
    return torch.sparse_coo_tensor(nowhere, nothing, like.shape, check_invariants=False)
