"""The weighted tally, and what it counts of each voter, against whole numbers in numpy."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from kernel_reference import (
    COIN,
    MASK,
    POSITIVE,
    ZERO,
    Block,
    Layout,
    coin_word,
    implementation,  # noqa: F401
    random_ballots,
    word,
)

from hvd_sign.core import kernels

KEY = 0xDEADBEEF
FEW = (
    *([1], [0], [-7], [2, 1], [1, 1], [3, -3], [0, 0], [1, 1, 1], [2, 1, 1], [-5, 15, 9]),
    *([1, 1, 1, 1], [3, 2, 1, -1], [15, -15, 7, 8], [0, 0, 5, -5]),
)
every_implementation = pytest.mark.usefixtures("implementation")


class Counts:
    """Arrays to count into, which already hold something."""

    def __init__(self, voters: int) -> None:
        self.before = np.arange(voters, dtype=np.uint64)
        self.agreed, self.judged = self.before.copy(), self.before.copy()

    def found(self) -> tuple[list[int], list[int]]:
        return (self.agreed - self.before).tolist(), (self.judged - self.before).tolist()


def run_tally(
    ballots: np.ndarray,
    layout: Layout,
    ties: int,
    weights: np.ndarray | None,
    counts: Counts | None,
    *,
    firsts: Sequence[int] = (0,),
    lengths: Sequence[int] | None = None,
    shard: int = 0,
) -> tuple[np.ndarray, tuple[int, int]]:
    verdict = np.zeros(layout.message, np.uint8)
    if lengths is None:
        lengths = [64 * layout.blocks]
    seen = kernels.tally(
        ballots.reshape(-1),
        layout.geometry(),
        verdict,
        shard=shard,
        ties=ties,
        key=KEY,
        first_blocks=np.array(firsts, np.int64),
        ordinals=np.arange(5, 5 + len(firsts), dtype=np.uint64),
        weights=weights,
        lengths=np.array(lengths, np.uint64),
        agreed=counts and counts.agreed,
        judged=counts and counts.judged,
    )
    return verdict, seen


def count_by_sums(votes: np.ndarray, weights: np.ndarray) -> tuple[list[int], list[int]]:
    """Of votes [voter, coordinate]: where each agrees with the others, and where they decide."""
    total = (weights[:, None] * votes).sum(0)
    others = np.sign(total - weights[:, None] * votes)
    judged = (votes != 0) & (others != 0)
    return (judged & (votes == others)).sum(1).tolist(), judged.sum(1).tolist()


def check(
    ballots: np.ndarray,
    votes: np.ndarray,
    active: np.ndarray,
    weights: np.ndarray,
    layout: Layout,
    ties: int,
) -> None:
    """Votes as -1, 0, +1, [voter, block, coordinate], and activity, [voter, block]."""
    counts = Counts(len(votes))
    verdict, seen = run_tally(ballots, layout, ties, weights.astype(np.int8), counts)
    total = (weights[:, None, None] * votes).sum(0)
    alive = active.any(0)
    tied = (total == 0) & (votes != 0).any(0)
    assert seen == (tied.sum(), (~alive).sum())
    for g in range(layout.blocks):
        coins = coin_word(KEY, 5, g) if ties == COIN else 0
        signs = word(total[g] < 0) | (word(tied[g]) & coins)
        nonzero = word(total[g] != 0) if ties == ZERO else 0
        assert layout.read(verdict, g) == (signs, alive[g], nonzero), g
    assert counts.found() == count_by_sums(votes.reshape(len(votes), -1), weights)
    # Without counts the verdict is the same.
    again, seen_again = run_tally(ballots, layout, ties, weights.astype(np.int8), None)
    assert (again == verdict).all()
    assert seen_again == seen


@every_implementation
def test_literally() -> None:
    # Voters of weights 3, -2, 1, 0; coordinates 0 to 3. 1 = negative.
    layout = Layout(1, 1)
    ballots = np.zeros((4, layout.message), np.uint8)
    for row, signs in zip(ballots, (0b0001, 0b0011, 0b0111, 0b1111), strict=True):
        layout.write(row, 0, Block(signs, True, 0))
    counts = Counts(4)
    weights = np.array([3, -2, 1, 0], np.int8)
    verdict, seen = run_tally(ballots, layout, POSITIVE, weights, counts, lengths=[4])
    # The sums: -3+2-1 = -2; 3+2-1 = 4; 3-2-1 = 0, a tie; 3-2+1 = 2.
    assert layout.read(verdict, 0) == Block(0b0001, True, 0)
    assert seen == (1, 0)
    # The others of each: 1, 1, -3, -1; -4, 2, 2, 4; -1, 5, 1, 1; -2, 4, 0, 2.
    assert counts.found() == ([1, 4 - 1, 1 + 1, 1], [4, 4, 4, 3])


@every_implementation
@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_every_combination_of_votes(ties: int) -> None:
    for weights in FEW:
        voters = len(weights)
        choices = (-1, 0, 1) if ties == ZERO else (-1, 1)
        combined = np.array(list(itertools.product(choices, repeat=voters)), np.int64)
        combined = np.tile(combined, (-(-64 // len(combined)), 1))[: -(-len(combined) // 64) * 64]
        combined = np.resize(combined, (-(-len(combined) // 64) * 64, voters))
        columns = combined.T.reshape(voters, -1, 64)
        patterns = list(itertools.product((True, False), repeat=voters))
        active = np.repeat(np.array(patterns).T, columns.shape[1], axis=1)
        votes = np.tile(columns, (1, len(patterns), 1)) * active[:, :, None]
        layout = Layout(votes.shape[1], 1, ties == ZERO)
        ballots = np.zeros((voters, layout.message), np.uint8)
        for row, cast, awake in zip(ballots, votes, active, strict=True):
            for g in range(layout.blocks):
                block = Block(word(cast[g] < 0), bool(awake[g]), word(cast[g] != 0))
                layout.write(row, g, block)
        check(ballots, votes, active, np.array(weights), layout, ties)


@every_implementation
@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_any_number_of_voters_and_blocks(ties: int) -> None:
    for voters in (*range(1, 36), 63, 64, 65, 127, 128, 300):
        for asleep in (0.0, 0.5):
            rng = np.random.default_rng(voters)
            blocks = 1 + voters * 7 % 71 if voters < 40 else 9
            layout = Layout(blocks, 1, ties == ZERO)
            ballots, votes, active = random_ballots(voters, layout, rng, asleep)
            check(ballots, votes, active, rng.integers(-15, 16, voters), layout, ties)


@every_implementation
@pytest.mark.parametrize("ties", [COIN, ZERO])
def test_extremes_of_weights(ties: int) -> None:
    rng = np.random.default_rng(3)
    layout = Layout(11, 1, ties == ZERO)
    for voters in (1, 2, 7, 8, 9, 300, 4000):
        for low, high in ((15, 15), (-15, -15), (0, 0), (1, 1), (-1, 1), (8, 8), (14, 15)):
            ballots, votes, active = random_ballots(voters, layout, rng, 0.2)
            check(ballots, votes, active, rng.integers(low, high + 1, voters), layout, ties)


@every_implementation
@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_without_weights_the_plain_verdict_is_counted(ties: int) -> None:
    rng = np.random.default_rng(4)
    layout = Layout(70, 1, ties == ZERO)
    for voters in (1, 2, 5, 16):
        ballots, votes, _ = random_ballots(voters, layout, rng, 0.3)
        counts = Counts(voters)
        verdict, seen = run_tally(ballots, layout, ties, None, counts)
        ones = np.ones(voters, np.int64)
        assert counts.found() == count_by_sums(votes.reshape(voters, -1), ones)
        plain = np.zeros(layout.message, np.uint8)
        seen_plain = kernels.tally(
            ballots.reshape(-1),
            layout.geometry(),
            plain,
            shard=0,
            ties=ties,
            key=KEY,
            first_blocks=np.zeros(1, np.int64),
            ordinals=np.full(1, 5, np.uint64),
        )
        assert (verdict == plain).all()
        assert seen == seen_plain


@every_implementation
@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_bits_past_a_tensor_are_no_votes(ties: int) -> None:
    rng = np.random.default_rng(5)
    # Tensors from blocks -3, 2, 9 (empty), 9 and 70 of the bucket; the first began before it.
    firsts, lengths = [-3, 2, 9, 9, 70], [64 * 4 + 1, 64 * 7, 0, 64 * 61 - 63, 64 * 30 - 5]
    layout = Layout(100, 3, ties == ZERO)
    exist = np.zeros((102, 64), bool)
    for first, length in zip(firsts, lengths, strict=True):
        inside = max(0, length + 64 * min(first, 0))
        exist.reshape(-1)[64 * max(first, 0) :][:inside] = True
    assert not exist[1, 1:].any()
    weights = np.array([5, -4, -4], np.int64)
    for shard in range(3):
        piece = Layout(layout.shard_blocks, 1, ties == ZERO)
        ballots, votes, active = random_ballots(3, piece, rng, 0.3)  # whatever is past the ends
        here = exist[shard * layout.shard_blocks :][: layout.shard_blocks]
        counts = Counts(3)
        verdict, seen = run_tally(
            ballots,
            layout,
            ties,
            weights.astype(np.int8),
            counts,
            firsts=firsts,
            lengths=lengths,
            shard=shard,
        )
        blocks = min(layout.shard_blocks, 100 - shard * layout.shard_blocks)
        votes, here, active = votes[:, :blocks] * here[:blocks], here[:blocks], active[:, :blocks]
        total = (weights[:, None, None] * votes).sum(0)
        tied = (total == 0) & (votes != 0).any(0)
        assert seen == (tied.sum(), (~active.any(0)).sum())
        assert counts.found() == count_by_sums(votes.reshape(3, -1), weights)
        for b in range(blocks):
            g = shard * layout.shard_blocks + b
            tensor = max(t for t in range(5) if firsts[t] <= g)
            coins = coin_word(KEY, 5 + tensor, g - firsts[tensor]) if ties == COIN else 0
            signs = word(total[b] < 0) | (word(tied[b]) & coins)
            nonzero = word(total[b] != 0) if ties == ZERO else 0
            assert piece.read(verdict, b) == (signs, active[:, b].any(), nonzero)


@every_implementation
def test_words_of_an_inactive_block_do_not_count() -> None:
    layout = Layout(1, 1)
    ballots = np.zeros((3, layout.message), np.uint8)
    cast = [Block(MASK, False, 0), Block(0, True, 0), Block(MASK, True, 0)]
    for row, vote in zip(ballots, cast, strict=True):
        layout.write(row, 0, vote)
    counts = Counts(3)
    verdict, seen = run_tally(ballots, layout, COIN, np.array([9, -2, -1], np.int8), counts)
    assert layout.read(verdict, 0) == Block(MASK, True, 0)
    assert seen == (0, 0)
    # The others of the second say +1, those of the third -2.
    assert counts.found() == ([0, 64, 64], [0, 64, 64])


def tally(**changes: Any) -> None:
    layout = Layout(4, 2)
    options = {
        "weights": np.ones(3, np.int8),
        "lengths": np.full(1, 256, np.uint64),
        "agreed": np.zeros(3, np.uint64),
        "judged": np.zeros(3, np.uint64),
        "ballots": np.zeros(3 * layout.message, np.uint8),
        "verdict": np.zeros(layout.message, np.uint8),
        **changes,
    }
    kernels.tally(
        options.pop("ballots"),
        layout.geometry(),
        options.pop("verdict"),
        shard=0,
        ties=COIN,
        key=1,
        first_blocks=np.zeros(1, np.int64),
        ordinals=np.zeros(1, np.uint64),
        **options,
    )


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


NONE: dict[str, Any] = {"weights": None, "lengths": None, "agreed": None, "judged": None}
MEMORY = np.zeros(27, np.uint64)

REFUSED: list[tuple[type[Exception], Callable[[], None], str]] = [
    (
        ValueError,
        lambda: tally(weights=np.array([1, 16, 1], np.int8)),
        "tally: weights: expected numbers from -15 to 15, got 16",
    ),
    (
        ValueError,
        lambda: tally(weights=np.array([1, 1, -128], np.int8)),
        "tally: weights: expected numbers from -15 to 15, got -128",
    ),
    (
        ValueError,
        lambda: tally(weights=np.ones(2, np.int8)),
        "tally: weights: expected 3 items, got 2",
    ),
    (
        TypeError,
        lambda: tally(weights=np.ones(3)),
        "tally: weights: expected a contiguous int8 array, got float64",
    ),
    (
        TypeError,
        lambda: tally(lengths=None),
        "tally: lengths: expected an array, beside weights or counts, got NoneType",
    ),
    (
        TypeError,
        lambda: tally(**NONE | {"lengths": np.zeros(1, np.uint64)}),
        "tally: lengths: expected None, as there are no weights and no counts, got ndarray",
    ),
    (
        ValueError,
        lambda: tally(lengths=np.zeros(2, np.uint64)),
        "tally: lengths: expected 1 items, got 2",
    ),
    (
        TypeError,
        lambda: tally(judged=None),
        "tally: judged: expected an array, as agreed is, got NoneType",
    ),
    (
        TypeError,
        lambda: tally(agreed=None),
        "tally: judged: expected None, as there is no agreed, got ndarray",
    ),
    (
        ValueError,
        lambda: tally(agreed=np.zeros(4, np.uint64)),
        "tally: agreed: expected 3 items, got 4",
    ),
    (
        ValueError,
        lambda: tally(judged=read_only(np.zeros(3, np.uint64))),
        "tally: judged: expected a writable array, got a read-only one",
    ),
    (
        ValueError,
        lambda: tally(agreed=MEMORY[:3], judged=MEMORY[2:5]),
        "tally: judged: expected memory apart from agreed, got an overlap with it",
    ),
    (
        ValueError,
        lambda: tally(agreed=MEMORY[:3], lengths=MEMORY[2:3]),
        "tally: agreed: expected memory apart from lengths, got an overlap with it",
    ),
    (
        ValueError,
        lambda: tally(judged=MEMORY[:3], ballots=MEMORY.view(np.uint8)),
        "tally: judged: expected memory apart from ballots, got an overlap with it",
    ),
    (
        ValueError,
        lambda: tally(judged=MEMORY[:3], verdict=MEMORY[2:11].view(np.uint8)),
        "tally: judged: expected memory apart from verdict, got an overlap with it",
    ),
    (
        ValueError,
        lambda: tally(weights=MEMORY.view(np.int8)[:3], verdict=MEMORY[:9].view(np.uint8)),
        "tally: verdict: expected memory apart from weights, got an overlap with it",
    ),
]


@pytest.mark.parametrize(("error", "call", "sentence"), REFUSED, ids=[s for *_, s in REFUSED])
def test_errors(error: type[Exception], call: Callable[[], None], sentence: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        call()
