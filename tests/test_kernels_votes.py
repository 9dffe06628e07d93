"""The tally against votes counted one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from kernel_reference import (
    COIN,
    MASK,
    NOTHING,
    POSITIVE,
    ZERO,
    Block,
    Layout,
    balanced,
    coin_word,
    decide,
    implementation,  # noqa: F401
    random_ballots,
    word,
)

from hvd_sign.core import kernels

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("implementation")]

KEY = 0xDEADBEEF


def run_tally(
    ballots: np.ndarray,
    layout: Layout,
    ties: int,
    *,
    shard: int = 0,
    firsts: Sequence[int] = (0,),
    ordinals: Sequence[int] = (5,),
    parity: int = 0,
) -> tuple[np.ndarray, tuple[int, int]]:
    verdict = np.zeros(layout.message, np.uint8)
    seen = kernels.tally(
        ballots.reshape(-1),
        layout.geometry(),
        verdict,
        shard=shard,
        ties=ties,
        key=KEY,
        first_blocks=np.array(firsts, np.int64),
        ordinals=np.array(ordinals, np.uint64),
        parity=parity,
    )
    return verdict, seen


def compare(columns: Sequence[Sequence[Block]], ties: int) -> None:
    """Tallies blocks, each given as every voter's block, and decides them one by one, too."""
    voters = len(columns[0])
    layout = Layout(len(columns), 1, ties == ZERO)
    ballots = np.zeros((voters, layout.message), np.uint8)
    for g, column in enumerate(columns):
        for row, vote in zip(ballots, column, strict=True):
            layout.write(row, g, vote)
    verdict, seen = run_tally(ballots, layout, ties)
    for g, column in enumerate(columns):
        expected = decide(column, ties, coin_word(KEY, 5, g))
        if ties != ZERO:
            expected = expected._replace(nonzero=0)
        assert layout.read(verdict, g) == expected, f"block {g}: {column}"
    assert seen == (
        sum(balanced(column, ties) for column in columns),
        sum(not any(vote.active for vote in column) for column in columns),
    )


def spread(votes: Sequence[tuple[int, ...]], active: Sequence[bool]) -> list[Block]:
    """One block a voter; votes[i] is coordinate i: each voter's -1, 0 or +1."""
    blocks = []
    for voter, there in enumerate(active):
        signs = word(vote[voter] < 0 for vote in votes)
        nonzero = word(vote[voter] != 0 for vote in votes)
        blocks.append(Block(signs, True, nonzero) if there else NOTHING)
    return blocks


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_every_combination_of_votes(voters: int, ties: int) -> None:
    choices = (-1, 0, 1) if ties == ZERO else (-1, 1)
    votes = list(itertools.product(choices, repeat=voters))
    votes += votes[: -len(votes) % 64] if len(votes) > 64 else votes * (64 // len(votes) - 1)
    columns = []
    for active in itertools.product((True, False), repeat=voters):
        for start in range(0, len(votes), 64):
            columns.append(spread(votes[start : start + 64], active))
    compare(columns, ties)
    # By themselves and all active: the fast path.
    compare([column for column in columns if all(vote.active for vote in column)], ties)


@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_words_of_an_inactive_block_do_not_count(ties: int) -> None:
    liar = Block(MASK, False, MASK)
    honest = [Block(0b1010, True, 0b1110), Block(0b1100, True, 0b1111), Block(0, True, 0b1101)]
    layout = Layout(1, 1, ties == ZERO)
    ballots = np.zeros((5, layout.message), np.uint8)
    for row, vote in zip(ballots, [liar, *honest, liar], strict=True):
        layout.write(row, 0, vote)
    verdict, _ = run_tally(ballots, layout, ties)
    expected = decide(honest, ties, coin_word(KEY, 5, 0))
    assert layout.read(verdict, 0)[:2] == expected[:2]
    assert ties != ZERO or layout.read(verdict, 0) == expected


def test_a_sign_without_its_nonzero_bit_does_not_count() -> None:
    compare_with = [Block(0b1111, True, 0b0011), Block(0b0000, True, 0b1111)]
    layout = Layout(1, 1, True)
    ballots = np.zeros((2, layout.message), np.uint8)
    for row, vote in zip(ballots, compare_with, strict=True):
        layout.write(row, 0, vote)
    verdict, seen = run_tally(ballots, layout, ZERO)
    assert layout.read(verdict, 0) == Block(0, True, 0b1100)
    assert seen == (2, 0)


def check_against_sums(voters: int, blocks: int, ties: int, asleep: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layout = Layout(blocks, 1, ties == ZERO)
    ballots, votes, active = random_ballots(voters, layout, rng, asleep)
    verdict, seen = run_tally(ballots, layout, ties)
    total = votes.sum(0)
    alive = active.any(0)
    tied = (total == 0) & (np.abs(votes).sum(0) > 0)
    assert seen == (tied.sum(), (~alive).sum())
    for g in range(blocks):
        coins = coin_word(KEY, 5, g) if ties == COIN else 0
        signs = word(total[g] < 0) | (word(tied[g]) & coins)
        nonzero = word(total[g] != 0) if ties == ZERO else 0
        assert layout.read(verdict, g) == (signs, alive[g], nonzero), (voters, g)


@pytest.mark.parametrize("ties", [COIN, POSITIVE, ZERO])
def test_any_number_of_voters_and_blocks(ties: int) -> None:
    for voters in range(1, 41):
        check_against_sums(voters, 1 + voters * 3 % 71, ties, 0.0, voters)
        check_against_sums(voters, 1 + voters * 7 % 71, ties, 0.5, voters)
    for blocks in range(1, 140):
        check_against_sums(3, blocks, ties, 0.2 * (blocks % 2), blocks)


@pytest.mark.parametrize("voters", [63, 64, 65, 127, 128, 255, 256, 257, 1000, 65535, 65536])
@pytest.mark.parametrize("ties", [COIN, ZERO])
def test_many_voters(voters: int, ties: int) -> None:
    blocks = 6 if voters < 2000 else 2
    check_against_sums(voters, blocks, ties, 0.0, voters)
    check_against_sums(voters, blocks, ties, 0.5, voters)


@pytest.mark.parametrize("voters", [255, 256, 65535])
def test_unanimous_crowds(voters: int) -> None:
    layout = Layout(5, 1)
    ballots = np.zeros((voters, layout.message), np.uint8)
    ballots[:, 48 : 48 + 40] = 255
    ballots[:, layout.active] = 0b11111
    verdict, seen = run_tally(ballots, layout, COIN)
    assert [layout.read(verdict, g) for g in range(5)] == [(MASK, True, 0)] * 5
    assert seen == (0, 0)


def test_coins_follow_tensors_across_shards() -> None:
    firsts, ordinals = [-3, 2, 2, 9, 70], [11, 12, 13, 1 << 63, 15]
    layout = Layout(100, 3)
    for shard in range(3):
        ballots = np.zeros((2, layout.message), np.uint8)
        first = shard * layout.shard_blocks
        count = min(layout.shard_blocks, 100 - first)
        for b in range(count):
            layout.write(ballots[0], b, Block(MASK, True, 0))
            layout.write(ballots[1], b, Block(0, True, 0))
        verdict, seen = run_tally(
            ballots, layout, COIN, shard=shard, firsts=firsts, ordinals=ordinals
        )
        assert seen == (count * 64, 0)
        for b in range(count):
            tensor = max(t for t in range(5) if firsts[t] <= first + b)
            coins = coin_word(KEY, ordinals[tensor], first + b - firsts[tensor])
            assert layout.read(verdict, b) == (coins, True, 0)


def test_odd_parity_inverts_the_coins_of_ties_alone() -> None:
    layout = Layout(3, 1)
    ballots = np.zeros((2, layout.message), np.uint8)
    for b, (first, second) in enumerate([(MASK, 0), (MASK, MASK), (0xFF00, 0xF000)]):
        layout.write(ballots[0], b, Block(first, True, 0))
        layout.write(ballots[1], b, Block(second, True, 0))
    coins = [coin_word(KEY, 5, b) for b in range(3)]
    for parity in (0, 1, 2, 3):
        turn = MASK if parity % 2 else 0
        verdict, seen = run_tally(ballots, layout, COIN, parity=parity)
        assert seen == (64 + 4, 0)
        decided = [layout.read(verdict, b)[0] for b in range(3)]
        tied = 0x0F00
        assert decided == [coins[0] ^ turn, MASK, 0xF000 | tied & (coins[2] ^ turn)]


def test_blocks_past_the_bucket_are_dead() -> None:
    layout = Layout(70, 3)
    ballots = np.full((3, layout.message), 255, np.uint8)
    verdict, seen = run_tally(ballots, layout, COIN, shard=2)
    assert [layout.read(verdict, b)[:2] for b in (21, 22, 23)] == [
        (MASK, True),
        (0, False),
        (0, False),
    ]
    assert seen == (0, 0)
    empty = Layout(3, 5)
    ballots = np.full((3, empty.message), 255, np.uint8)
    assert run_tally(ballots, empty, COIN, shard=4)[1] == (0, 0)


def test_headers_are_left_alone() -> None:
    layout = Layout(3, 1)
    ballots = np.full((3, layout.message), 255, np.uint8)
    assert (run_tally(ballots, layout, COIN)[0][:48] == 0).all()


def median_trailers(columns: list[list[float]]) -> list[float]:
    """The verdict's trailer for these, one column a tensor, one number a ballot."""
    layout = Layout(3, 1, floats=len(columns))
    ballots = np.zeros((len(columns[0]), layout.message), np.uint8)
    trailers = ballots[:, layout.trailer :].view(np.float32)
    trailers[:, : len(columns)] = np.array(columns, np.float32).T
    verdict, _ = run_tally(ballots, layout, COIN)
    return list(verdict[layout.trailer :].view(np.float32)[: len(columns)].tolist())


def test_trailers_have_a_median() -> None:
    assert median_trailers([[4.5, 1, 2], [2.0**99, 3, 2], [7, 7, 2.0**-99]]) == [2, 3, 7]
    # Of an even number the lower middle one: neither of two can make it large.
    assert median_trailers([[5, 1e6], [1e6, 5]]) == [5, 5]
    assert median_trailers([[8, 2, 6, 4]]) == [4]
    assert median_trailers([[3]]) == [3]


def test_trailers_that_are_no_number_above_zero_do_not_count() -> None:
    nan, inf = float("nan"), float("inf")
    assert median_trailers([[nan, 3, nan, nan], [nan, 0, 5, 7]]) == [3, 5]
    assert median_trailers([[inf, inf, inf, 9], [-1, -inf, -2, 9]]) == [9, 9]
    assert median_trailers([[nan, nan], [0, -0.0], [inf, -1]]) == [0, 0, 0]


def test_the_median_of_thousands_of_trailers() -> None:
    numbers = np.random.default_rng(8).permutation(np.arange(1.0, 5001.0))
    assert median_trailers([numbers.tolist(), numbers[::-1].tolist()]) == [2500, 2500]
