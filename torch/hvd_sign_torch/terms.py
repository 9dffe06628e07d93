"""How an optimizer's gradients are voted on, whichever its parameters are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hvd_sign.core.options import VoteOptions
from hvd_sign.core.training import TrainingOptions
from hvd_sign.frontend.choice import Choice
from hvd_sign.votes import VoteRule


@dataclass(frozen=True)
class Terms:
    """What a user's arguments say, checked.

    Attributes:
        process_set: among whom.
        rule: decides.
        options: of the votes.
        training: what else is done with gradients.
        bucket_bytes: of gradients that share messages.
        groups: of gradients that share messages, as Horovod has them.
        choice: which parameters are voted on; the others get the mean of the ranks' gradients.
        sparse_as_dense: vote on sparse gradients as dense ones.
        of_signs: the wrapped optimizer's own keywords, if its algorithm is the votes'.
        grad_scaler: whose scale the gradients carry, and the verdicts then carry too.
    """

    process_set: Any
    rule: VoteRule
    options: VoteOptions
    training: TrainingOptions
    bucket_bytes: int | str
    groups: Any
    choice: Choice
    sparse_as_dense: bool
    of_signs: dict[str, Any] | None
    grad_scaler: Any
