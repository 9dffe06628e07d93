"""Broadcasting an optimizer's state without a vote, and without losing what is each rank's own."""

from __future__ import annotations

import torch

from hvd_sign_torch.exchanging_optimizer import ExchangingOptimizer
from hvd_sign_torch.worlds import plain


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int, model: torch.nn.Module | None = None
) -> None:
    """Horovod's ``broadcast_optimizer_state``, for voting optimizers too.

    Horovod's own calls ``step()`` to make an empty optimizer's state, which would vote, and which
    weight decay would let move parameters; here it is shown the wrapped optimizer, with a state.

    Args:
        optimizer: wrapped or not.
        root_rank: whose state all ranks get.
        model: as for Horovod.
    """
    if not isinstance(optimizer, ExchangingOptimizer):
        plain.broadcast_optimizer_state(optimizer, root_rank, model)
        return
    inner = optimizer.plain()
    if not inner.state and not isinstance(inner, torch.optim.SparseAdam):
        _make_state(inner)
    plain.broadcast_optimizer_state(inner, root_rank, model)
    optimizer.state = inner.state
    optimizer.param_groups = inner.param_groups


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Makes an empty optimizer's state by a step on zero gradients, which moves nothing."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    gradients = [p.grad for p in parameters]
    decays = [group.get("weight_decay") for group in optimizer.param_groups]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0
    optimizer.step()
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        if "weight_decay" in group:
            group["weight_decay"] = decay
