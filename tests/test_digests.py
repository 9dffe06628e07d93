"""Verdicts and payload of every combination of options are those of digests.csv."""

from __future__ import annotations

import importlib.util

import digests
import launch
import pytest

PARTS = {
    "numpy": digests.DTYPES,
    "torch": ("float64",),
    "tensorflow": ("float32",),
}


@pytest.mark.skipif(
    importlib.util.find_spec("hvd_sign._engine") is None, reason="built without the native engine"
)
@pytest.mark.parametrize("framework", PARTS)
def test_votes_are_those_of_the_table(framework, tmp_path):
    if not launch.has(framework):
        pytest.skip(f"needs {framework}")
    found = digests.votes(framework, "mpi", 3, PARTS[framework], tmp_path)
    assert len(found) == (24 if framework == "numpy" else 72) * len(PARTS[framework])
    differing = digests.differences(found, digests.read(3))
    if differing:
        listed = "".join(f"\n  {line}" for line in differing)
        pytest.fail(f"of {len(found)} rows these differ:{listed}", pytrace=False)


@pytest.mark.parametrize("ranks", digests.RANKS)
def test_the_table_is_whole_and_has_one_meaning(ranks):
    """Of an optimizer and a tape, sharded and allgathered, on however many ranks."""
    table = digests.read(ranks)
    assert len(table) == 4 * 3 * 4 * 2 * (1 + 2 + 2)
    for (interface, ties, exchange, *others), (verdicts, payload) in table.items():
        assert (int(payload) == 0) == (ranks == 1)
        if interface == "tape":
            assert verdicts == table[("optimizer", ties, exchange, *others)][0]
        if interface != "allreduce" and exchange == "allgather":
            assert verdicts == table[(interface, ties, "sharded", *others)][0]
