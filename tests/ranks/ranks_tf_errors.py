"""What ranks' differences are to scripts that catch Horovod's errors, and ours."""

from __future__ import annotations

import pickle

import pytest
import tensorflow as tf
from tf_helpers import recorded, variables

from hvd_sign.errors import DisagreementError, VoteError

FAILED = tf.errors.FailedPreconditionError
INVALID = tf.errors.InvalidArgumentError


def mismatches(hvd_tf, odd):
    """Calls in which odd ranks differ from the others; Horovod says so by FAILED."""
    return {
        "shape": lambda: hvd_tf.allreduce(tf.ones(2 + odd), name="shape"),
        "dtype": lambda: hvd_tf.allreduce(tf.ones(2, [tf.int32, tf.float32][odd]), name="dtype"),
        "op": lambda: hvd_tf.allreduce(tf.ones(2), op=[hvd_tf.Sum, hvd_tf.Max][odd], name="op"),
        "group": lambda: hvd_tf.grouped_allreduce([tf.ones(2), tf.ones(2 + odd)], name="group"),
        "gather": lambda: hvd_tf.allgather(tf.ones([2, 2 + odd]), name="gather"),
        "root": lambda: hvd_tf.broadcast(tf.ones(2), odd, name="root"),
        "scatter": lambda: hvd_tf.reducescatter(tf.ones(4 + odd), name="scatter"),
    }


def vote_mismatches(hvd_tf, odd):
    vote = hvd_tf.MajorityVote
    return {
        "vote": lambda: hvd_tf.allreduce(tf.ones(2 + odd), op=vote, name="vote"),
        "votes": lambda: hvd_tf.grouped_allreduce([tf.ones(2 + odd)], op=vote, name="votes"),
        "options": lambda: hvd_tf.allreduce(tf.ones(2), op=vote, seed=odd, name="options"),
    }


@pytest.mark.ranks(2)
def test_differences_are_failed_preconditions(hvd_tf, world):
    odd = world.rank % 2
    calls = mismatches(hvd_tf, odd) | vote_mismatches(hvd_tf, odd)
    for what, call in calls.items():
        with pytest.raises(FAILED) as caught:
            call()
        ours = what in vote_mismatches(hvd_tf, odd) or hvd_tf.runtime() == "mpi"
        assert isinstance(caught.value, DisagreementError) == ours, what
        if ours:
            assert isinstance(caught.value, (ValueError, VoteError)), what
            assert "differs between ranks" in str(caught.value), what
            assert caught.value.message == str(caught.value)
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.ranks(2)
def test_differences_in_a_graph_are_tensorflows_errors(hvd_tf, world):
    odd = world.rank % 2
    calls = mismatches(hvd_tf, odd) | vote_mismatches(hvd_tf, odd)
    for what, call in calls.items():
        # What a host function raises in a graph is an InvalidArgumentError at best.
        with pytest.raises((FAILED, INVALID)) as caught:
            tf.function(call)()
        if what in vote_mismatches(hvd_tf, odd):
            assert "DisagreementError: allreduce" in str(caught.value), what


@pytest.mark.ranks(2)
@pytest.mark.parametrize("mode", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_differences_in_variables_are_failed_preconditions(hvd_tf, world, mode):
    (variable,) = variables((3 + (world.rank == 1),))

    def verdict():
        tape, target = recorded([variable], [tf.ones(variable.shape)])
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote)
        return tape.gradient(target, variable)

    with pytest.raises(FAILED, match="shape differs between ranks"):
        mode(verdict)()


@pytest.mark.ranks(2)
def test_a_rank_outside_is_an_invalid_argument(hvd_tf, world):
    inside = hvd_tf.add_process_set(list(range(world.size - 1)))
    calls = (
        lambda: hvd_tf.allreduce(tf.ones(2), process_set=inside, name="outside"),
        lambda: hvd_tf.allgather(tf.ones(2), process_set=inside, name="outside"),
        lambda: hvd_tf.broadcast(tf.ones(2), 0, process_set=inside, name="outside"),
        lambda: hvd_tf.allreduce(
            tf.ones(2), op=hvd_tf.MajorityVote, process_set=inside, name="outside"
        ),
    )
    for call in calls:
        for mode in (lambda f: f, tf.function):
            if world.rank < world.size - 1:
                mode(call)()
            else:
                with pytest.raises(INVALID):
                    mode(call)()
    world.Barrier()
    assert hvd_tf.remove_process_set(inside)


def test_bad_arguments_are_invalid(hvd_tf, world):
    for call in (
        lambda: hvd_tf.broadcast(tf.ones(2), world.size, name="nobody"),
        lambda: hvd_tf.alltoall(tf.ones(world.size), [world.size + 1] * world.size, name="much"),
        lambda: hvd_tf.alltoall(tf.ones(world.size * 2 + 1), [2] * world.size + [1], name="many"),
    ):
        with pytest.raises(INVALID):
            call()


def test_what_slices_do_not_take_is_not_implemented(hvd_tf, world):
    slices = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([0]), tf.constant([3, 2]))
    with pytest.raises(NotImplementedError, match="IndexedSlices"):
        hvd_tf.allreduce(slices, op=hvd_tf.Min, name="least")
    with pytest.raises(NotImplementedError, match="IndexedSlices"):
        hvd_tf.allreduce(slices, prescale_factor=2.0, name="twice")
