"""The majority vote: V = sign(sum of signs), per coordinate."""

from __future__ import annotations

from dataclasses import dataclass

from hvd_sign.votes.base import VoteRule


@dataclass(frozen=True, repr=False)
class MajorityVote(VoteRule):
    """One voter, one vote (Bernstein et al. 2019, arXiv 1810.05291, Algorithm 1)."""

    name = "MajorityVote"
