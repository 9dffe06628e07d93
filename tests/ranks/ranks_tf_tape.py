"""Votes in allreduce and DistributedGradientTape, eagerly and in tf.function."""

from __future__ import annotations

import time

import numpy as np
import pytest
import reference
import tensorflow as tf
from tf_helpers import (
    DTYPES,
    SHAPES,
    expected,
    gradients,
    plain,
    recorded,
    same_everywhere,
    values,
    variables,
)

import hvd_sign_tf

TIES = ("coin", "zero", "positive")
MODES = ("eager", "graph")


def as_mode(mode, function):
    return tf.function(function) if mode == "graph" else function


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5, 1000)], ids=str)
def test_allreduce_is_the_majority(hvd_tf, world, shape, dtype, ties, mode):
    tensor = tf.constant(values(world.rank, *shape, dtype=dtype))
    vote = as_mode(mode, lambda t: hvd_tf.allreduce(t, op=hvd_tf.MajorityVote, ties=ties))
    verdict = vote(tensor)
    assert (verdict.dtype, verdict.shape) == (tensor.dtype, tensor.shape)
    expected(world, tensor, ties).check(plain(verdict))
    assert same_everywhere(world, verdict)


@pytest.mark.parametrize("mode", MODES)
def test_prescale_turns_and_postscale_multiplies(hvd_tf, world, mode):
    tensor = tf.constant([1.0, -2.0, 3.0])
    vote = as_mode(
        mode,
        lambda t: hvd_tf.allreduce(
            t, op=hvd_tf.MajorityVote, prescale_factor=-1.0, postscale_factor=0.5
        ),
    )
    assert vote(tensor).numpy().tolist() == [-0.5, 0.5, -0.5]


def test_shapes_that_only_the_run_knows(hvd_tf, world):
    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def vote(tensor):
        return hvd_tf.allreduce(tensor, op=hvd_tf.MajorityVote, ties="zero")

    for rows in (1, 5):
        tensor = tf.constant(values(rows + world.rank, rows, 3))
        expected(world, tensor, "zero").check(plain(vote(tensor)))


def test_ranks_of_tensors_that_only_the_run_knows(hvd_tf, world):
    @tf.function(input_signature=[tf.TensorSpec(None)])
    def vote(tensor):
        return hvd_tf.allreduce(tensor, op=hvd_tf.MajorityVote, ties="zero")

    for shape in ((), (3,), (2, 2)):
        tensor = tf.constant(values(world.rank, *shape))
        verdict = vote(tensor)
        assert verdict.shape == shape
        expected(world, tensor, "zero").check(plain(verdict))


def test_tensors_of_all_shapes_after_one_another(hvd_tf, world):
    """TensorFlow traces anew until it has seen enough, then for any shape."""
    for shape in [(), (2,), (3, 1), (4,), (), (1, 2, 3), (0,), ()]:
        tensor = tf.constant(values(world.rank, *shape))
        verdict = hvd_tf.allreduce(tensor, op=hvd_tf.MajorityVote, ties="zero")
        assert verdict.shape == shape
        expected(world, tensor, "zero").check(plain(verdict))


def test_a_group_is_one_vote(hvd_tf, world):
    tensors = [tf.constant(values(i + 10 * world.rank, *s)) for i, s in enumerate(SHAPES)]
    verdicts = hvd_tf.grouped_allreduce(tensors, op=hvd_tf.MajorityVote, ties="positive")
    for tensor, verdict in zip(tensors, verdicts, strict=True):
        expected(world, tensor, "positive").check(plain(verdict))


@pytest.mark.parametrize("mode", MODES)
def test_votes_of_a_graph_run_as_they_are_written(hvd_tf, world, mode):
    """Ranks whose computations take differently long would else vote on different things."""

    def slow(tensor, wait):
        def sleep(array):
            time.sleep(wait)
            return array

        return tf.reshape(tf.numpy_function(sleep, [tensor], tf.float32), tensor.shape)

    def votes(tensor):
        late = slow(tensor, 0.2 * (world.rank % 2))
        soon = slow(-tensor, 0.2 * (1 - world.rank % 2))
        return [
            hvd_tf.allreduce(signal, op=hvd_tf.MajorityVote, ties="zero", name=f"signal{i % 2}")
            for i, signal in enumerate([late, soon, late])
        ]

    tensor = tf.constant([1.0, -1.0])
    for verdict, sign in zip(as_mode(mode, votes)(tensor), (1, -1, 1), strict=True):
        assert verdict.numpy().tolist() == [sign, -sign]


@pytest.mark.parametrize("mode", MODES)
def test_verdicts_of_the_tape(hvd_tf, world, mode):
    owned = variables(*SHAPES)
    for turn in range(3):
        given = gradients(world.rank, owned, turn)

        def verdicts(given=given):
            tape, target = recorded(owned, given)
            tape = hvd_tf.DistributedGradientTape(tape, compression=hvd_tf.Compression.sign)
            return tape.gradient(target, owned)

        found = as_mode(mode, verdicts)()
        for gradient, verdict, variable in zip(given, found, owned, strict=True):
            assert (verdict.dtype, verdict.shape) == (variable.dtype, variable.shape)
            expected(world, gradient).check(plain(verdict))
        assert same_everywhere(world, *found)


def test_sources_keep_their_structure(hvd_tf, world):
    first, second = variables((3,), (2,))
    tape, target = recorded([first, second], [tf.ones(3), -tf.ones(2)])
    tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote)
    found = tape.gradient(target, {"a": first, "b": [second]})
    assert found["a"].numpy().tolist() == [1, 1, 1]
    assert found["b"][0].numpy().tolist() == [-1, -1]


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_without_a_gradient_abstains(hvd_tf, world, mode):
    owned = variables((3,), (2,), (4,))
    lonely = world.size - 1
    given = [tf.ones(3), tf.constant([2.0, -1.0]) if world.rank == lonely else None, None]

    def verdicts():
        tape, target = recorded(owned, given)
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote)
        return tape.gradient(target, owned)

    ones, others, nobodys = as_mode(mode, verdicts)()
    assert ones.numpy().tolist() == [1, 1, 1]
    assert others.numpy().tolist() == [1, -1]
    assert nobodys.numpy().tolist() == [0] * 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vote", [True, False], ids=["vote", "mean"])
def test_gradients_that_come_and_go(hvd_tf, world, vote, mode):
    """Two losses that share a list of variables, each with a gradient for one of them."""
    first, second = variables((2,), (3,))
    options = {"op": hvd_tf.MajorityVote} if vote else {}

    def both():
        found = []
        for given in ([tf.ones(2), None], [None, 3 * tf.ones(3)]):
            tape, target = recorded([first, second], given)
            tape = hvd_tf.DistributedGradientTape(tape, **options)
            found += tape.gradient(target, [first, second])
        return found[0], found[3]

    ones, threes = as_mode(mode, both)()
    assert ones.numpy().tolist() == [1, 1]
    assert threes.numpy().tolist() == ([1, 1, 1] if vote else [3, 3, 3])


def test_scaled_verdicts(hvd_tf, world):
    (variable,) = variables((1000,))
    (given,) = gradients(world.rank, [variable])
    tape, target = recorded([variable], [given])
    tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, scale="mean_abs")
    (verdict,) = tape.gradient(target, [variable])
    size = reference.mean_abs(world.allgather(plain(given)))
    expected(world, given).check(plain(verdict), scale=size, rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
def test_groups_change_no_verdict(hvd_tf, world, groups):
    owned = variables(*SHAPES)
    given = gradients(world.rank, owned)
    tape, target = recorded(owned, given)
    tape = hvd_tf.DistributedGradientTape(
        tape, op=hvd_tf.MajorityVote, ties="zero", num_groups=groups
    )
    for gradient, verdict in zip(given, tape.gradient(target, owned), strict=True):
        expected(world, gradient, "zero").check(plain(verdict))


def test_functions_that_run_eagerly(hvd_tf, world):
    owned = variables(*SHAPES)
    given = gradients(world.rank, owned)
    tf.config.run_functions_eagerly(True)
    try:
        tape, target = recorded(owned, given)
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, ties="zero")
        verdicts = tape.gradient(target, owned)
        alone = hvd_tf.allreduce(given[0], op=hvd_tf.MajorityVote, ties="zero")
    finally:
        tf.config.run_functions_eagerly(False)
    for gradient, verdict in zip(given, verdicts, strict=True):
        expected(world, gradient, "zero").check(plain(verdict))
    np.testing.assert_array_equal(alone.numpy(), verdicts[0].numpy())


def test_skipped_steps_of_a_tape_are_inf_everywhere(hvd_tf, world):
    owned = variables((3,), (2,))
    bad = np.nan if world.rank == 0 else 1.0
    tape, target = recorded(owned, [tf.constant([1.0, bad, 1.0]), tf.ones(2)])
    tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, nonfinite="skip")
    found = tape.gradient(target, owned)
    assert np.isinf(np.concatenate([v.numpy() for v in found])).all()


def test_joined_ranks_abstain(hvd_tf, world):
    (variable,) = variables((3,))
    last = world.size - 1
    for step in range(1 + (world.rank == last)):
        sign = 1.0 if step == 0 else -1.0
        tape, target = recorded([variable], [sign * tf.ones(3)])
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, seed=4)
        assert tape.gradient(target, variable).numpy().tolist() == [sign] * 3
    assert int(hvd_tf.join()) == last


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("predivide", [1.0, 2.0])
def test_without_a_vote_the_tape_gives_means(hvd_tf, world, predivide, mode):
    owned = variables((3, 2), (), (5,))
    given = gradients(world.rank, owned)

    def means():
        tape, target = recorded([*owned, owned[0]], [*given, tf.zeros((3, 2))])
        tape = hvd_tf.DistributedGradientTape(tape, gradient_predivide_factor=predivide)
        return tape.gradient(target, owned)

    for gradient, found in zip(given, as_mode(mode, means)(), strict=True):
        wanted = np.mean(world.allgather(plain(gradient)), axis=0)
        np.testing.assert_allclose(plain(found), wanted, rtol=1e-5, atol=1e-6)


def test_sums_in_place_of_means(hvd_tf, world):
    (variable,) = variables((4,))
    tape, target = recorded([variable], [tf.range(4.0) + world.rank])
    tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.Sum)
    wanted = np.arange(4.0) * world.size + sum(range(world.size))
    (found,) = tape.gradient(target, [variable])
    np.testing.assert_allclose(found.numpy(), wanted)


def test_a_loss_scaler_that_the_tape_does_not_know_is_warned_of_once(hvd_tf, world, caplog):
    def warnings(policy, **options):
        tf.keras.mixed_precision.set_global_policy(policy)
        caplog.clear()
        hvd_sign_tf.tape._warn_of_scaling.cache_clear()
        try:
            for _ in range(2):
                with tf.GradientTape() as tape:
                    pass
                hvd_tf.DistributedGradientTape(tape, **options)
        finally:
            tf.keras.mixed_precision.set_global_policy("float32")
        return [r for r in caplog.records if "loss_scale_optimizer=optimizer" in r.getMessage()]

    vote = {"op": hvd_tf.MajorityVote}
    inner = tf.keras.optimizers.SGD(0.1)
    scaler = tf.keras.mixed_precision.LossScaleOptimizer(inner)
    expected = 1 if world.rank == 0 else 0
    assert len(warnings("mixed_float16", **vote)) == expected
    assert len(warnings("mixed_float16", scale="mean_abs", **vote)) == expected
    assert warnings("mixed_float16", scale="mean_abs", nonfinite="skip", **vote) == []
    assert warnings("mixed_float16", loss_scale_optimizer=scaler, **vote) == []
    assert warnings("mixed_bfloat16", **vote) == []
    assert warnings("mixed_float16") == []
