"""What every vote rule offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hvd_sign.errors import OperationError

if TYPE_CHECKING:
    from hvd_sign.stepwise import StepwiseBox


class Tally(NamedTuple):
    """What a rule noticed while it counted.

    Attributes:
        ties: tied coordinates of the shard.
        dead_blocks: blocks of the shard in which nobody voted.
    """

    ties: int
    dead_blocks: int


class VoteRule:
    """An operation for ``allreduce`` that decides by ballots instead of adding numbers."""

    name = "vote rule"

    def tally(self, box: StepwiseBox, shard: int) -> Tally:
        """Decides ``shard`` from the ballots in ``box.received`` and writes ``box.verdict``."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.name


def is_vote_rule(op: object) -> bool:
    """Whether ``op`` is a vote rule, or the class of one."""
    return isinstance(op, VoteRule) or (isinstance(op, type) and issubclass(op, VoteRule))


def make_rule(op: object) -> VoteRule:
    """The vote rule that ``op`` names: an instance, or a class to be made with its defaults.

    Raises:
        OperationError: ``op`` is no vote rule.
    """
    if isinstance(op, VoteRule):
        return op
    if isinstance(op, type) and issubclass(op, VoteRule):
        return op()
    raise OperationError(f"op: expected a vote rule such as hvd_sign.MajorityVote, got {op!r}")
