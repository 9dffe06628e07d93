"""The majority vote: V = sign(sum of signs), per coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvd_sign import kernels
from hvd_sign.votes.base import Tally, VoteRule

if TYPE_CHECKING:
    from hvd_sign.stepwise import StepwiseBox


class MajorityVote(VoteRule):
    """One voter, one vote (Bernstein et al. 2019, arXiv 1810.05291, Algorithm 1)."""

    name = "MajorityVote"

    def tally(self, box: StepwiseBox, shard: int) -> Tally:
        """Counts by carry-save adders on packed words; ties go as ``ties`` says."""
        ties, dead_blocks = kernels.tally(
            box.received,
            box.geometry,
            box.verdict,
            shard=shard,
            ties=box.ties,
            key=box.tie_key,
            first_blocks=box.bucket.first_blocks[:-1],
            ordinals=box.bucket.ordinals,
        )
        return Tally(ties, dead_blocks)
