"""Ranks compare what they have in common, and all of them say who differs, and in what."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf
from additions.esteem import Esteem
from tf_helpers import (
    TRAINED,
    fit,
    gradients,
    loss_scaled,
    plain,
    recorded,
    same_everywhere,
    small_model,
    variables,
)

KERAS = tf.keras
KERAS_2 = not hasattr(KERAS.optimizers.SGD, "apply")
MODES = pytest.mark.parametrize("mode", ["eager", "graph"])


def wrap(hvd_tf, optimizer=None, **options):
    options = {"op": hvd_tf.MajorityVote, "check_every": 2, **options}
    return hvd_tf.DistributedOptimizer(optimizer or KERAS.optimizers.SGD(0.5), **options)


def stepping(optimizer, owned, mode):
    """A step on a list of gradients."""

    def step(given):
        optimizer.apply_gradients(list(zip(given, owned, strict=True)))

    return tf.function(step) if mode == "graph" else step


def told_alike(world, step) -> str:
    """The sentence that all ranks raise; in a graph TensorFlow puts more around it."""
    with pytest.raises((ValueError, tf.errors.OpError)) as raised:
        step()
    (sentence,) = set(re.findall("check_every: ranks .* from one rank", str(raised.value)))
    assert len(set(world.allgather(sentence))) == 1
    return sentence


def changed(variable) -> None:
    """Another last coordinate."""
    numbers = np.array(variable.numpy())
    numbers.reshape(-1)[-1] += 2.0**-20
    variable.assign(numbers)


@pytest.mark.ranks(2)
@pytest.mark.parametrize(("place", "mode"), [(0, "graph"), (3, "eager")])
def test_one_coordinate_of_one_rank(hvd_tf, world, place, mode):
    """Seen at the next check, told alike, and mended by a broadcast: training then goes on."""
    owned = variables(*TRAINED)
    step = stepping(wrap(hvd_tf), owned, mode)
    step(gradients(world.rank, owned, 0))
    if world.rank == 1:
        changed(owned[place])
    step(gradients(world.rank, owned, 1))
    before = [plain(v) for v in owned]
    message = told_alike(world, lambda: step(gradients(world.rank, owned, 2)))
    assert f"by step 2: the checksum of variable 'layer{place}" in message
    others = "rank 0" if world.size == 2 else "ranks 0"
    assert f" on {others}" in message
    assert " on rank 1; broadcast" in message
    for variable, old in zip(owned, before, strict=True):
        np.testing.assert_array_equal(plain(variable), old)
    hvd_tf.broadcast_variables(owned, root_rank=0)
    for turn in range(3, 6):
        step(gradients(world.rank, owned, turn))
    assert same_everywhere(world, *owned)


@pytest.mark.ranks(2)
def test_nobody_has_broadcast(hvd_tf, world):
    """Said at the first step, before anything is learned on such variables."""
    owned = variables(*TRAINED)
    for place in (1, 2):
        owned[place].assign_add(tf.fill(owned[place].shape, float(world.rank)))
    step = stepping(wrap(hvd_tf, check_every=1000), owned, "graph")
    message = told_alike(world, lambda: step(gradients(world.rank, owned)))
    assert "by step 0: the checksum of variable 'layer1" in message
    assert "(1 more differ) differs" in message


@pytest.mark.ranks(2)
@MODES
@pytest.mark.parametrize("what", ["rate", "option"])
def test_what_else_differs(hvd_tf, world, what, mode):
    owned = variables(*TRAINED)
    last = world.rank == world.size - 1
    inner = KERAS.optimizers.SGD(0.5, momentum=0.5 if what == "option" and last else 0.25)
    optimizer = wrap(hvd_tf, inner, check_every=1)
    step = stepping(optimizer, owned, mode)
    if what == "rate":
        step(gradients(world.rank, owned, 0))
        if last:
            optimizer.learning_rate.assign(0.25)
    message = told_alike(world, lambda: step(gradients(world.rank, owned, 1)))
    wanted = {
        "rate": "by step 1: the checksum of the learning rate differs",
        "option": "by step 0: the checksum of the optimizer's options differs",
    }[what]
    assert wanted in message


@pytest.mark.ranks(2)
def test_a_schedule_that_is_further_on_a_rank(hvd_tf, world):
    """What it says of this step is compared."""
    schedule = KERAS.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    owned = variables(*TRAINED)
    optimizer = wrap(hvd_tf, KERAS.optimizers.SGD(schedule), check_every=1)
    step = stepping(optimizer, owned, "graph")
    step(gradients(world.rank, owned, 0))
    if world.rank == 0:
        optimizer.iterations.assign(5)
    message = told_alike(world, lambda: step(gradients(world.rank, owned, 1)))
    assert "by step 1: the checksum of the learning rate differs" in message


def test_what_a_rule_has_learned_is_compared(hvd_tf, world):
    owned = variables(*TRAINED)
    optimizer = wrap(hvd_tf, op=Esteem(), check_every=1)
    step = stepping(optimizer, owned, "graph")
    for turn in range(2):
        step(gradients(world.rank, owned, turn))
    state = optimizer._hvd_sign.state()
    if world.rank == 0:
        state["0/rule/judged"] = state["0/rule/judged"] + 1
    optimizer._hvd_sign.load_state(state)
    if world.size == 1:
        step(gradients(world.rank, owned, 2))
        return
    message = told_alike(world, lambda: step(gradients(world.rank, owned, 2)))
    assert "by step 2: the checksum of what the votes go on from differs" in message


@pytest.mark.parametrize(
    ("kind", "per_execution"), [("AdamW", 4), ("scaled", 1), ("schedule", 1), ("signs", 4)]
)
def test_nothing_differs(hvd_tf, world, kind, per_execution):
    """In Keras' own loop, where weights decay and rates change in the same graph."""
    schedule = KERAS.optimizers.schedules.ExponentialDecay(0.01, 1, 0.9)
    inner = {
        "AdamW": lambda: KERAS.optimizers.AdamW(0.01, weight_decay=0.5),
        "scaled": lambda: loss_scaled(64.0),
        "schedule": lambda: KERAS.optimizers.Adam(schedule),
        "signs": lambda: hvd_tf.Signum(schedule, weight_decay=0.5),
    }[kind]()
    optimizer = wrap(hvd_tf, inner, check_every=1, warmup_steps=2)
    model = small_model(optimizer, steps_per_execution=per_execution)
    assert same_everywhere(world, *fit(model, world.rank))


@pytest.mark.ranks(2 if KERAS_2 else 1000)
def test_legacy_optimizers_are_compared(hvd_tf, world):
    owned = variables(*TRAINED)
    optimizer = wrap(hvd_tf, KERAS.optimizers.legacy.SGD(0.5), check_every=1)
    step = stepping(optimizer, owned, "graph")
    for turn in range(2):
        step(gradients(world.rank, owned, turn))
    assert same_everywhere(world, *owned)
    optimizer.learning_rate.assign(0.5 + world.rank)
    message = told_alike(world, lambda: step(gradients(world.rank, owned, 2)))
    assert "by step 2: the checksum of the learning rate differs" in message


@pytest.mark.ranks(2)
@MODES
def test_a_tape_compares_variables(hvd_tf, world, mode):
    """As they are where it takes their gradients, and not as the same graph leaves them."""
    owned = variables(*TRAINED)

    def step(given, grow):
        for variable in owned:
            variable.assign_add(tf.ones_like(variable))
        tape, target = recorded(owned, given)
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, check_every=1, seed=53)
        found = tape.gradient(target, owned)
        for variable in owned:
            variable.assign_add(tf.fill(variable.shape, grow))
        return found

    run = tf.function(step) if mode == "graph" else step
    run(gradients(world.rank, owned, 0), tf.constant(1.0))
    run(gradients(world.rank, owned, 1), tf.constant(float(world.rank)))
    message = told_alike(world, lambda: run(gradients(world.rank, owned, 2), tf.constant(1.0)))
    assert "by step 2: the checksum of variable 'layer0" in message
    assert "(3 more differ)" in message


@MODES
def test_skipped_steps_and_passes(hvd_tf, world, mode):
    """Compared at the end of a step, and not in its first passes."""
    owned = variables(*TRAINED)
    optimizer = wrap(hvd_tf, check_every=1, nonfinite="skip", backward_passes_per_step=2)
    step = stepping(optimizer, owned, mode)
    for turn in range(3):
        for half in range(2):
            given = [np.array(g.numpy()) for g in gradients(world.rank, owned, 2 * turn + half)]
            if turn == 1 and world.rank == 0:
                given[0][0, 0] = np.inf
            step([tf.constant(g) for g in given])
    assert same_everywhere(world, *owned)


@pytest.mark.ranks(2)
def test_after_a_step_that_failed_half_way(hvd_tf, world):
    """The other ranks have had that step; this one ends it and then goes on with them."""
    first, second = variables((2,), (3,))

    @tf.function
    def verdicts(index):
        with tf.GradientTape() as tape:
            target = tf.reduce_sum(first) - tf.reduce_sum(second) * tf.gather([1.0], index)
        tape = hvd_tf.DistributedGradientTape(
            tape, op=hvd_tf.MajorityVote, num_groups=2, check_every=1, seed=59
        )
        return tape.gradient(target, [first, second])

    verdicts(tf.constant(0))
    if world.rank == 0:
        with pytest.raises(tf.errors.OpError, match="indices"):
            verdicts(tf.constant(7))
    else:
        verdicts(tf.constant(0))
    ones, others = verdicts(tf.constant(0))
    assert ones.numpy().tolist() == [1, 1]
    assert others.numpy().tolist() == [-1, -1, -1]


def test_xla_is_refused_here_too(hvd_tf, world):
    owned = variables(*TRAINED)
    step = stepping(wrap(hvd_tf, check_every=1), owned, "eager")
    with pytest.raises(RuntimeError, match="XLA cannot compile"):
        tf.function(step, jit_compile=True)(gradients(world.rank, owned))
