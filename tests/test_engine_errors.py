"""What the native engine refuses of what it is made of, and in which words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hvd_sign.core import kernels

engine = pytest.importorskip("hvd_sign._engine", reason="built without the native engine")

pytestmark = pytest.mark.quick

TENSORS = [(0, 130, 0), (3, 64, 1)]  # blocks 0 to 2, and block 3
MESSAGES = np.zeros(2 * kernels.Geometry(4, 1).total_bytes, np.uint8)
BALLOTS, VERDICTS = np.split(MESSAGES, 2)


def plan(**changes: Any) -> Any:
    given = {
        "tensors": TENSORS,
        "blocks": 4,
        "ties": 0,
        "owners": [[0], [1]],
        "scaled": False,
        "rank": 0,
        "voters": 2,
        "stream": 0,
        "bucket": 0,
        "segment_blocks": 64,
        "depth": 6,
        "counted": False,
        "ballots": BALLOTS,
        "verdicts": VERDICTS,
    }
    return engine.plan(**{**given, **changes})


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"tensors": [(0, 257, 0)]},
        "plan: tensors: expected tensor 0 within the bucket's 4 blocks, got 5 blocks from 0 on",
    ),
    (
        {"tensors": [(0, 2**64 - 1, 0)]},
        "plan: tensors: expected tensor 0 within the bucket's 4 blocks, got 288230376151711744 "
        "blocks from 0 on",
    ),
    (
        {"tensors": [(0, 130, 0), (2, 64, 1)]},
        "plan: tensors: expected tensor 1 at block 3, where the one before it ends, got block 2",
    ),
    (
        {"tensors": [(0, 130, 0), (2**64 - 1, 64, 1)]},
        "plan: tensors: expected tensor 1 at block 3, where the one before it ends, got block "
        "18446744073709551615",
    ),
    ({"tensors": [(0, 130, 0)]}, "plan: blocks: expected 3, the tensors', got 4"),
    ({"tensors": []}, "plan: blocks: expected 0, the tensors', got 4"),
    (
        {"averaged": True, "blocks": 128},
        "plan: tensors: expected tensor 1 at block 64, where the one before it ends, got block 3",
    ),
    (
        {"blocks": 2**64 - 1},
        "plan: blocks: expected at most 281474976710656, got 18446744073709551615",
    ),
    ({"ties": 3}, "plan: ties: expected 0 (coin), 1 (zero) or 2 (positive), got 3"),
    ({"voters": 0}, "plan: voters: expected 1 or more, got 0"),
    ({"voters": 2**64 - 1}, "plan: voters: expected at most 2147483647, got 18446744073709551615"),
    ({"rank": 2}, "plan: rank: expected less than the 2 voters, got 2"),
    ({"rank": 2**64 - 1}, "plan: rank: expected less than the 2 voters, got 18446744073709551615"),
    ({"owners": []}, "plan: owners: expected 1 or more, got 0"),
    (
        {"owners": [[0], []]},
        "plan: owners: expected for each shard some of the 2 voters, ascending, got none",
    ),
    (
        {"owners": [[0], [1, 1]]},
        "plan: owners: expected for each shard some of the 2 voters, ascending, got 1, 1",
    ),
    (
        {"owners": [[2]]},
        "plan: owners: expected for each shard some of the 2 voters, ascending, got 2",
    ),
    ({"segment_blocks": 0}, "plan: segment_blocks: expected 1 or more, got 0"),
    ({"depth": 0}, "plan: depth: expected 1 or more, got 0"),
    (
        {"tensors": [(0, 2**40, 0)], "blocks": 2**34, "segment_blocks": 2**34},
        "plan: segment_blocks: expected messages of at most 2147483647 bytes, got 17179869184, "
        "whose have 69793218608",
    ),
    (
        {"voters": 2**27, "owners": [[0]], "counted": True},
        "plan: segment_blocks: expected messages of at most 2147483647 bytes, got 64, whose have "
        "2147483736",
    ),
    ({"ballots": MESSAGES}, "plan: ballots: expected 88 items, got 176"),
    ({"verdicts": VERDICTS[1:]}, "plan: verdicts: expected 88 items, got 87"),
    (
        {"verdicts": MESSAGES[8:96]},
        "plan: verdicts: expected memory apart from ballots, got an overlap with it",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=[s for _, s in WRONG])
def test_plans(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        plan(**changes)


@pytest.mark.parametrize("name", ["blocks", "rank", "voters", "segment_blocks", "depth"])
def test_negative_sizes(name: str) -> None:
    with pytest.raises(TypeError):
        plan(**{name: -1})


def test_plans_that_fit() -> None:
    assert plan().segments == 2  # a tensor's blocks begin at a multiple of 64 in a segment
    assert plan(scaled=True).segments == 3
    assert plan(counted=True).segments == 2
    assert plan(segment_blocks=2**63, depth=2**63, rank=1).segments == 1
    assert plan(owners=[[0, 1]], segment_blocks=1).segments == 2
    empty = np.zeros(2 * kernels.Geometry(0, 1).total_bytes, np.uint8)
    ballots, verdicts = np.split(empty, 2)
    assert plan(tensors=[(0, 0, 0)], blocks=0, ballots=ballots, verdicts=verdicts).segments == 1
    assert plan(tensors=[], blocks=0, ballots=ballots, verdicts=verdicts).segments == 1


def test_no_communicator() -> None:
    with pytest.raises(ValueError, match="open: expected a communicator's address, got 0"):
        engine.Engine(1).open(0, 0)
