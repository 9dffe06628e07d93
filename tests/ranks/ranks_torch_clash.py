"""Sums of Horovod's, and votes of the same name on other ranks."""

from __future__ import annotations

import time

import pytest
import torch

from hvd_sign.engine import coordinator, elsewhere

# They wait for seconds, so that they run once: on three ranks either side may be several.
pytestmark = [pytest.mark.runtime("horovod"), pytest.mark.ranks(3, 3)]
GENEROUS = 30.0  # seconds; it takes about five, and here one


@pytest.fixture
def hasty(monkeypatch):
    """Ranks tell of their waiting five times a second: what is a clash is one sooner."""
    for module in (coordinator, elsewhere):
        monkeypatch.setattr(module, "SECOND", 0.2)


def called(hvd, name: str, kind: str) -> None:
    tensor = torch.ones(70)
    if kind == "vote":
        hvd.allreduce(tensor, name=name, op=hvd.MajorityVote)
    elif kind == "blocking":
        hvd.allreduce(tensor, name=name, op=hvd.Sum)
    elif kind == "grouped":
        hvd.grouped_allreduce([tensor, tensor], name=name, op=hvd.Sum)
    else:
        hvd.synchronize(hvd.allreduce_async_(tensor, name=name, op=hvd.Sum))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("voter", [0, -1])
@pytest.mark.parametrize("kind", ["blocking", "begun"])
def test_a_sum_beside_votes_of_its_name(hvd, world, kind, voter):
    """All end in an error, and the name can be used again."""
    name = f"clash.{kind}.{voter}"
    voters = [world.size - 1] if voter else list(range(world.size - 1))
    votes = world.rank in voters
    begin = time.monotonic()
    with pytest.raises(ValueError if votes else RuntimeError) as raised:
        called(hvd, name, "vote" if votes else kind)
    assert time.monotonic() - begin < GENEROUS
    said = world.allgather(str(raised.value))
    sums = [rank for rank in range(world.size) if rank not in voters]
    for rank in voters:
        assert said[rank].startswith(f"allreduce {name!r}: op differs between ranks: "), said
        for op, ranks in ("Horovod's allreduce", sums), ("MajorityVote", voters):
            word = "rank" if len(ranks) == 1 else "ranks"
            assert f"{op} on {word} {', '.join(map(str, ranks))}" in said[rank], said
    for rank in sums:
        assert "ismatched" in said[rank], said
    called(hvd, name, "vote")
    assert (hvd.allreduce(torch.ones(3), name=name, op=hvd.Sum) == world.size).all()


@pytest.mark.usefixtures("hasty")
def test_a_group_beside_votes_of_its_name(hvd, world):
    """Horovod's part has other names, so that it goes on waiting; the votes end."""
    name = "clash.group"
    if world.rank:
        with pytest.raises(ValueError, match="ranks: Horovod's grouped allreduce on rank 0"):
            called(hvd, name, "vote")
    called(hvd, name, "grouped")


def test_slow_ranks_are_no_clash(hvd, world):
    """Of a sum that waits for five seconds, or a vote that does."""
    sums = [(late, kind) for kind in ("blocking", "begun") for late in (0, 1)]
    for late, what in (*sums[:2], (world.size - 1, "vote"), *sums[2:]):
        if world.rank == late:
            time.sleep(5)
        called(hvd, "slow", what)


def test_operations_in_another_order_are_no_clash(hvd, world):
    """Ranks that begin a sum and a vote of one name, and wait for neither before both."""
    name, tensor = "crossed", torch.ones(70)
    kinds = [hvd.Sum, hvd.MajorityVote]
    if world.rank == 0:
        kinds.reverse()
    first = hvd.allreduce_async(tensor, name=name, op=kinds[0])
    time.sleep(6)
    second = hvd.allreduce_async(tensor, name=name, op=kinds[1])
    results = {kind: hvd.synchronize(h) for kind, h in zip(kinds, (first, second), strict=True)}
    assert (results[hvd.Sum] == world.size).all()
    assert (results[hvd.MajorityVote] == 1).all()
