"""A vote rule whose weights learn: who agreed with the others counts, who did not is turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvd_sign.votes import VoteRule


@dataclass(frozen=True, repr=False)
class Esteem(VoteRule):
    """A rank's weight is `highest` times its agreement so far, from -1 to 1, rounded."""

    highest: int = 15

    name = "Esteem"
    weighs = True
    learns = True

    def initial(self, voters: int) -> dict[str, Any]:
        return {name: np.zeros(voters, np.int64) for name in ("judged", "agreed")}

    def weights(self, state: Mapping[str, Any], voters: int) -> Sequence[int]:
        pairs = zip(state["judged"].tolist(), state["agreed"].tolist(), strict=True)
        return [round(self.highest * (2 * a - j) / j) if j else self.highest for j, a in pairs]

    def learn(self, state: Mapping[str, Any], judged: Any, agreed: Any) -> dict[str, Any]:
        return {
            "judged": state["judged"] + judged.astype(np.int64),
            "agreed": state["agreed"] + agreed.astype(np.int64),
        }
