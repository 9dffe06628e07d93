"""Sums of Horovod's, and votes of the same name on other ranks."""

from __future__ import annotations

import pytest
import tensorflow as tf

pytestmark = [pytest.mark.runtime("horovod"), pytest.mark.ranks(2)]


def test_a_sum_beside_votes_of_its_name(hvd_tf, world):
    """All end in an error, and the name can be used again."""
    name, tensor = "clash", tf.ones(70)
    votes = world.rank == world.size - 1
    with pytest.raises((ValueError, tf.errors.OpError)) as raised:
        hvd_tf.allreduce(tensor, name=name, op=hvd_tf.MajorityVote if votes else hvd_tf.Sum)
    said = world.allgather(str(raised.value))
    assert f"allreduce {name!r}: op differs between ranks: Horovod's allreduce on rank" in said[-1]
    assert all("ismatched" in other for other in said[:-1]), said
    assert (hvd_tf.allreduce(tensor, name=name, op=hvd_tf.MajorityVote).numpy() == 1).all()
    assert (hvd_tf.allreduce(tensor, name=name, op=hvd_tf.Sum).numpy() == world.size).all()
