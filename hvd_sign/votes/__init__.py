"""Vote rules: what a set of ballots decides. One file each."""

from hvd_sign.votes.base import (
    Count,
    State,
    Tally,
    VoteRule,
    initial_of,
    is_vote_rule,
    make_rule,
    weights_of,
)
from hvd_sign.votes.majority import MajorityVote

RULES: tuple[type[VoteRule], ...] = (MajorityVote,)

__all__ = [
    "RULES",
    "Count",
    "MajorityVote",
    "State",
    "Tally",
    "VoteRule",
    "initial_of",
    "is_vote_rule",
    "make_rule",
    "weights_of",
]
