"""Broadcasting an optimizer's state without a vote, and without losing what is each rank's own."""

from __future__ import annotations

import horovod.torch as horovod
import torch

from hvd_sign_torch.voting_optimizer import VotingOptimizer


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int, model: torch.nn.Module | None = None
) -> None:
    """Horovod's ``broadcast_optimizer_state``, for voting optimizers too.

    Horovod's own calls ``step()`` to make an empty optimizer's state, which would vote; here the
    wrapped optimizer is shown to it.

    Args:
        optimizer: wrapped or not.
        root_rank: whose state all ranks get.
        model: as for Horovod.
    """
    if not isinstance(optimizer, VotingOptimizer):
        horovod.broadcast_optimizer_state(optimizer, root_rank, model)
        return
    plain = optimizer.plain()
    horovod.broadcast_optimizer_state(plain, root_rank, model)
    optimizer.state = plain.state
    optimizer.param_groups = plain.param_groups
