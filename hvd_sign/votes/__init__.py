"""Vote rules: what a set of ballots decides. One file each."""

from hvd_sign.votes.base import VoteRule, is_vote_rule, make_rule
from hvd_sign.votes.majority import MajorityVote

RULES: tuple[type[VoteRule], ...] = (MajorityVote,)

__all__ = ["RULES", "MajorityVote", "VoteRule", "is_vote_rule", "make_rule"]
