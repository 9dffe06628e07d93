"""What every vote rule offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from hvd_sign.core import kernels
from hvd_sign.core.buckets import Bucket
from hvd_sign.errors import OperationError


class Tally(NamedTuple):
    """What was noticed while ballots were counted.

    Attributes:
        ties: tied coordinates of the shard.
        dead_blocks: blocks of the shard in which nobody voted.
    """

    ties: int
    dead_blocks: int


class Count(NamedTuple):
    """One shard's ballots, and all that decides them beside the rule.

    Attributes:
        ballots: uint8, the voters' messages of the shard, one after another.
        verdict: uint8, one message, whose planes and trailer are written.
        geometry: how the bucket lies in the messages.
        bucket: the tensors.
        shard: its number.
        ties: number of the tie policy.
        key: of the coins that decide ties.
        parity: whether those coins are turned round.
        weights: int8[voters]; None: each voter has one vote.
        judged: uint64[voters], or None: added to: the coordinates that a voter voted on and the
            others decided.
        agreed: as ``judged``: those of them in which it voted as they did.
    """

    ballots: npt.NDArray[Any]
    verdict: npt.NDArray[Any]
    geometry: kernels.Geometry
    bucket: Bucket
    shard: int
    ties: int
    key: int
    parity: bool = False
    weights: npt.NDArray[np.int8] | None = None
    judged: npt.NDArray[np.uint64] | None = None
    agreed: npt.NDArray[np.uint64] | None = None


State = Mapping[str, npt.NDArray[Any]]


HEAVIEST = 15
"""The largest weight, of either sign, that packed words are counted with."""


class VoteRule:
    """An operation for ``allreduce`` that decides by ballots instead of adding numbers.

    To be derived from as a frozen dataclass of parameters: ranks agree on its ``repr()``. It keeps
    nothing itself: what it learns are arrays that the session owns, the same on all ranks, since
    they come of verdicts and counts that all ranks have got.

    Attributes:
        weighs: voters have weights, so that they have to be the ranks themselves.
        learns: ``learn()`` is called after each step that counts.
    """

    name: ClassVar[str] = "vote rule"
    weighs: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def initial(self, voters: int) -> dict[str, npt.NDArray[Any]]:
        """The arrays before the first step."""
        return {}

    def weights(self, state: State, voters: int) -> Sequence[int] | None:
        """Each voter's weight in the next step, from -15 to 15, of whole numbers alone.

        None: each has one vote. V = sign(sum of weight * sign).
        """
        return None

    def learn(
        self, state: State, judged: npt.NDArray[np.uint64], agreed: npt.NDArray[np.uint64]
    ) -> dict[str, npt.NDArray[Any]]:
        """The arrays after a step; a pure function.

        Args:
            state: before it.
            judged: uint64[voters], coordinates that a voter voted on, and that the others decided.
            agreed: uint64[voters], those of them in which it voted as the others did.
        """
        return dict(state)

    def tally(self, count: Count) -> Tally:
        """Decides a shard, counted on packed words.

        A rule that overrides it is served by the reference, not by the native engine.
        """
        more: dict[str, Any] = {}
        if count.weights is not None or count.judged is not None:
            more = {
                "weights": count.weights,
                "lengths": count.bucket.lengths,
                "judged": count.judged,
                "agreed": count.agreed,
            }
        ties, dead_blocks = kernels.tally(
            count.ballots,
            count.geometry,
            count.verdict,
            shard=count.shard,
            ties=count.ties,
            key=count.key,
            parity=count.parity,
            first_blocks=count.bucket.first_blocks[:-1],
            ordinals=count.bucket.ordinals,
            **more,
        )
        return Tally(ties, dead_blocks)

    @property
    def counts_once(self) -> bool:
        """V = sign(sum of signs), in the place of which the sign of a mean may stand."""
        return self.native and not (self.weighs or self.learns)

    @property
    def native(self) -> bool:
        """Whether the native engine's tally is its own."""
        return type(self).tally is VoteRule.tally

    def __repr__(self) -> str:
        names = [field.name for field in fields(self)] if is_dataclass(self) else sorted(vars(self))
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.name}({given})" if given else self.name


def initial_of(rule: VoteRule, voters: int) -> dict[str, npt.NDArray[Any]]:
    """What a rule begins with.

    Raises:
        ValueError: it is not numpy's arrays by name.
    """
    given = rule.initial(voters)
    if isinstance(given, dict) and all(isinstance(a, np.ndarray) for a in given.values()):
        return given
    raise ValueError(f"op: {rule!r}: initial(): expected numpy's arrays by name, got {given!r}")


def weights_of(rule: VoteRule, state: State, voters: int) -> npt.NDArray[np.int8] | None:
    """Each voter's weight, as ``rule.weights()`` tells it; None: each has one vote.

    Raises:
        ValueError: they are not whole numbers from -15 to 15, one a voter.
    """
    given = rule.weights(state, voters)
    if given is None:
        return None
    numbers = np.asarray(given)
    if numbers.shape == (voters,) and numbers.dtype.kind in "biuf":
        wide = numbers.astype(np.float64)
        if np.all((np.rint(wide) == wide) & (np.abs(wide) <= HEAVIEST)):
            return numbers.astype(np.int8)
    raise ValueError(
        f"op: {rule!r}: weights(): expected {voters} whole numbers, one a voter, from "
        f"{-HEAVIEST} to {HEAVIEST}, got {given!r}"
    )


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
