"""Steps that are dense before votes begin, and variables that go dense beside others.

Means and momentum are numpy's.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from additions.esteem import Esteem
from additions.momentum import FusedMomentum, Momentum
from reference import verdict
from tf_helpers import (
    TRAINED,
    Stepper,
    assert_equal,
    carried,
    everyones,
    fit,
    gradients,
    is_mean,
    loss_scaled,
    plain,
    recorded,
    refused_alike,
    same_everywhere,
    small_model,
    stepped,
    variables,
)

KERAS = tf.keras
BIG = (True, False, True, False)
BETA = 0.75
WARM = 2
MODES = pytest.mark.parametrize("mode", ["eager", "graph"])


def blended(v: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    return np.float32(BETA) * v + np.float32(1 - BETA) * gradient


@MODES
@pytest.mark.parametrize(
    ("kind", "bucket_bytes"), [("sign", 100), (Momentum, 25 << 20), (FusedMomentum, 100)]
)
def test_means_then_votes(hvd_tf, world, kind, bucket_bytes, mode):
    algorithm = kind if kind == "sign" else kind(BETA)
    step = Stepper(hvd_tf, mode, algorithm=algorithm, bucket_bytes=bucket_bytes, warmup_steps=WARM)
    kept = [[np.zeros(shape, np.float32) for shape in TRAINED] for _ in range(world.size)]
    for turn in range(WARM + 2):
        given = everyones(world, step.owned, turn)
        found = step([tf.constant(g) for g in given[world.rank]])
        for i, got in enumerate(found):
            for rank in range(world.size):
                kept[rank][i] = blended(kept[rank][i], given[rank][i])
            if turn < WARM:
                is_mean(given, i, got)
            else:
                signals = given if kind == "sign" else kept
                verdict([arrays[i] for arrays in signals], "zero").check(got)
        if kind != "sign":
            saved = step.state()
            for i, wanted in enumerate(kept[world.rank]):
                np.testing.assert_array_equal(saved[f"v/{i}"], wanted.reshape(-1))
    assert same_everywhere(world, *step.owned)


@MODES
def test_a_tape_warms_up(hvd_tf, world, mode):
    owned = variables(*TRAINED)

    def gradient(given):
        tape, target = recorded(owned, given)
        tape = hvd_tf.DistributedGradientTape(
            tape, op=hvd_tf.MajorityVote, ties="zero", warmup_steps=1, min_size=1, seed=31
        )
        return tape.gradient(target, owned)

    run = tf.function(gradient) if mode == "graph" else gradient
    for turn in range(3):
        given = everyones(world, owned, turn)
        found = run([tf.constant(g) for g in given[world.rank]])
        for i, got in enumerate(found):
            if turn == 0:
                is_mean(given, i, plain(got))
            else:
                verdict([theirs[i] for theirs in given], "zero").check(plain(got))


@pytest.mark.parametrize("average", [False, True])
def test_dense_passes_add_up(hvd_tf, world, average):
    step = Stepper(
        hvd_tf,
        backward_passes_per_step=2,
        average_aggregated_gradients=average,
        warmup_steps=1,
        min_size=34,
    )
    for turn in range(2):
        given = [everyones(world, step.owned, 2 * turn + half) for half in range(2)]
        step([tf.constant(g) for g in given[0][world.rank]])
        found = step([tf.constant(g) for g in given[1][world.rank]])
        sums = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(*given, strict=True)]
        sums = [[np.float64(g) / (1 + average) for g in theirs] for theirs in sums]
        for i, got in enumerate(found):
            if turn == 1 and BIG[i]:
                verdict([theirs[i] for theirs in sums], "zero").check(got)
            else:
                is_mean(sums, i, got)


@pytest.mark.parametrize("saved_after", [1, WARM + 1])
def test_a_checkpoint_goes_on(hvd_tf, world, tmp_path, saved_after):
    """Be it in the warm-up or after it, which then is over."""

    def start():
        step = Stepper(hvd_tf, algorithm=Momentum(BETA), op=Esteem(7), warmup_steps=WARM)
        return step, tf.train.Checkpoint(optimizer=step.optimizer)

    def turns(step, numbers):
        return [step(gradients(world.rank, step.owned, turn)) for turn in numbers]

    step, checkpoint = start()
    turns(step, range(saved_after))
    path = checkpoint.write(str(tmp_path / "state"))
    again, checkpoint = start()
    checkpoint.read(path)
    wanted = turns(step, range(saved_after, WARM + 3))
    found = turns(again, range(saved_after, WARM + 3))
    for one, other in zip(wanted, found, strict=True):
        assert_equal(one, other)
    assert set(np.unique(found[-1][0])) <= {-1, 0, 1}
    first_is_vote = set(np.unique(found[0][0])) <= {-1, 0, 1}
    assert first_is_vote == (saved_after >= WARM)
    for name, array in step.state().items():
        np.testing.assert_array_equal(again.state()[name], array)


def test_a_keras_file_goes_on(hvd_tf, world, tmp_path):
    """Eight steps an epoch, of which the first six are dense."""
    options = {"compression": hvd_tf.Compression.signum(), "warmup_steps": 6}
    unbroken = small_model(hvd_tf.DistributedOptimizer(KERAS.optimizers.SGD(0.01), **options))
    dense = small_model(hvd_tf.keras.DistributedOptimizer(KERAS.optimizers.SGD(0.01)))
    fit(unbroken, world.rank)
    assert (
        max(
            np.abs(a - b).max()
            for a, b in zip(unbroken.get_weights(), fit(dense, world.rank), strict=True)
        )
        > 1e-4
    )
    file = tmp_path / "model.keras"
    unbroken.save(file)
    loaded = hvd_tf.keras.load_model(file, **options)
    assert_equal(fit(loaded, world.rank), fit(unbroken, world.rank))


@MODES
def test_a_loss_scale_and_a_skipped_step(hvd_tf, world, mode):
    """Neither means nor verdicts carry it; nothing is kept of a step that does not count."""
    step = Stepper(
        hvd_tf, mode, loss_scaled(64.0), algorithm=Momentum(BETA), warmup_steps=3, min_size=34
    )
    step.optimizer.build(step.owned)
    kept = [np.zeros(shape, np.float32) for shape in TRAINED]
    for turn in range(4):
        given = everyones(world, step.owned, turn)
        if turn == 1:
            given[0][1][3] = np.inf
        found = step(carried(step.optimizer, given[world.rank]))
        if turn == 1:
            assert not any(np.any(got) for got in found)
            continue
        for i, got in enumerate(found):
            kept[i] = blended(kept[i], given[world.rank][i])
            if turn < 3 or not BIG[i]:
                is_mean(given, i, got)
            else:
                assert set(np.unique(got)) <= {-1, 0, 1}
        for i in (0, 2):
            np.testing.assert_array_equal(step.state()[f"v/{i}"], kept[i].reshape(-1))


@MODES
@pytest.mark.parametrize(("kind", "base"), [("SignSGD", "sign"), ("Signum", "signum")])
def test_an_optimizer_of_signs_does_its_own_on_means(hvd_tf, world, kind, base, mode):
    """In the warm-up and on what goes dense, as it would alone; votes have their own momentum."""
    make = getattr(hvd_tf, kind)
    optimizer = make(0.5, ties="zero")
    optimizer = hvd_tf.DistributedOptimizer(optimizer, warmup_steps=WARM, min_size=34)
    lone, owned, alone = make(0.5, ties="zero"), variables(*TRAINED), variables(*TRAINED)

    def apply(given):
        optimizer.apply_gradients(list(zip(given, owned, strict=True)))

    run = tf.function(apply) if mode == "graph" else apply
    kept = [[np.zeros(shape, np.float32) for shape in TRAINED] for _ in range(world.size)]
    for turn in range(WARM + 2):
        given = everyones(world, owned, turn)
        before = [plain(v) for v in owned]
        run([tf.constant(g) for g in given[world.rank]])
        means = [np.mean([theirs[i] for theirs in given], axis=0) for i in range(len(TRAINED))]
        lone.apply_gradients(
            [(tf.constant(m, tf.float32), v) for m, v in zip(means, alone, strict=True)]
        )
        for i, variable in enumerate(owned):
            pairs = [stepped(base, kept[r][i], given[r][i]) for r in range(world.size)]
            for rank, (_, after) in enumerate(pairs):
                kept[rank][i] = after
            if turn >= WARM and BIG[i]:
                moved = (before[i] - plain(variable)) / 0.5
                verdict([signal for signal, _ in pairs], "zero").check(np.round(moved, 3))
            elif turn < WARM or not BIG[i]:
                # But for coordinates whose mean, or momentum of it, is next to nothing.
                assert np.mean(np.abs(plain(variable) - plain(alone[i])) > 1e-5) < 0.02
    assert same_everywhere(world, *owned)


CHOICES = {
    "name": {"vote_if": lambda name, variable: name.partition(":")[0] in ("layer0", "layer2")},
    "variable": {"vote_if": lambda name, v: len(v.shape) == 2 or v.shape == (5000,)},
    "size": {"min_size": 34},
}


@pytest.mark.parametrize(
    ("choice", "dtype", "mode"),
    [
        ("name", "float32", "graph"),
        ("variable", "float64", "eager"),
        ("size", "float32", "eager"),
        ("size", "bfloat16", "graph"),
    ],
)
def test_who_goes_dense(hvd_tf, world, choice, dtype, mode):
    step = Stepper(hvd_tf, mode, dtype=dtype, **CHOICES[choice])
    for turn in range(2):
        given = gradients(world.rank, step.owned, turn)
        found = step(given)
        for gradient, got, vote in zip(given, found, BIG, strict=True):
            theirs = world.allgather(plain(gradient))
            if vote:
                verdict(theirs, "zero").check(got)
            else:
                near = {"float32": 1e-6, "float64": 1e-12, "bfloat16": 2**-7}[dtype]
                np.testing.assert_allclose(got, np.mean(theirs, axis=0), rtol=near, atol=near)
    assert same_everywhere(world, *step.owned)


def test_a_tape_that_is_made_anew_goes_on(hvd_tf, world):
    """With a predicate that is: its choice counts, not the function."""
    owned = variables(*TRAINED)
    kept = np.zeros((64, 10), np.float32)
    for turn in range(3):
        given = gradients(world.rank, owned, turn)
        tape, target = recorded(owned, given)
        tape = hvd_tf.DistributedGradientTape(
            tape,
            op=hvd_tf.MajorityVote,
            algorithm=Momentum(BETA),
            vote_if=lambda name, variable: variable.shape.rank == 2,
            seed=37,
        )
        tape.gradient(target, owned)
        kept = blended(kept, given[0].numpy())
    state = tape._hvd_sign_exchanges.state()
    assert {name: array.size for name, array in state.items()} == {"0/step": 1, "0/v/0": 640}
    np.testing.assert_array_equal(state["0/v/0"], kept.reshape(-1))


def test_absent_gradients_count_as_zeros(hvd_tf, world):
    owned = variables(*TRAINED)
    given = [g.numpy() for g in gradients(world.rank, owned)]
    mine = [None if i == 1 and world.rank == world.size - 1 else g for i, g in enumerate(given)]
    mine[3] = None
    tape, target = recorded(owned, mine)
    tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, min_size=34, seed=41)
    found = tape.gradient(target, owned)
    theirs = [0 * given[1] if mine[1] is None else given[1]]
    is_mean(world.allgather(theirs), 0, plain(found[1]))
    assert found[3].numpy() == 0


@pytest.mark.ranks(2)
def test_ranks_that_choose_or_warm_up_otherwise(hvd_tf, world):
    def first(**options):
        step = Stepper(hvd_tf, "eager", **options)
        step(gradients(world.rank, step.owned))

    message = refused_alike(world, lambda: first(min_size=34 * (world.rank == 0)))
    assert "'layer1:0'" in message or "'layer1'" in message
    assert "vote differs between ranks: False on rank 0; True on" in message
    message = refused_alike(world, lambda: first(warmup_steps=5 + world.rank))
    assert "warmup_steps differs between ranks: 5 on rank 0; 6 on rank 1" in message
    message = refused_alike(world, lambda: first(clip_norm=1.0 + world.rank))
    assert "clip_norm differs between ranks: 1.0 on rank 0; 2.0 on rank 1" in message
    message = refused_alike(world, lambda: first(check_every=1 + world.rank))
    assert "check_every differs between ranks: 1 on rank 0; 2 on rank 1" in message


def test_a_predicate_that_says_nothing_ends_everyones_step(hvd_tf, world):
    def choice(name, variable):
        return None if world.rank == 0 else True

    step = Stepper(hvd_tf, "eager", vote_if=choice)
    kind = TypeError if world.rank == 0 else ValueError
    with pytest.raises(kind, match=r"vote_if: expected True or False for parameter 'layer0"):
        step(gradients(world.rank, step.owned))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"min_size": -1}, ValueError, "min_size: expected a number of coordinates from 0, got -1"),
        ({"vote_if": "bias"}, TypeError, "vote_if: expected a function .* got 'bias'"),
        ({"warmup_steps": 2.5}, ValueError, "warmup_steps: expected a whole number of steps"),
        ({"check_every": True}, ValueError, "check_every: expected a whole number of steps"),
        ({"clip_value": 0}, ValueError, "clip_value: expected a finite number above zero"),
        ({"clip_norm": "one"}, ValueError, "clip_norm: expected a finite number above zero"),
        (
            {"clip_value": 1.0, "clip_norm": 2.0},
            ValueError,
            "clip_value, clip_norm: expected one of them",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(hvd_tf, options, kind, message):
    with pytest.raises(kind, match=message):
        Stepper(hvd_tf, **options)
    with pytest.raises(kind, match=message):
        hvd_tf.DistributedGradientTape(tf.GradientTape(), op=hvd_tf.MajorityVote, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"vote_if": lambda name, variable: True, "min_size": 3},
        {"warmup_steps": 3},
        {"clip_value": 1.0},
        {"clip_norm": 1.0},
        {"check_every": 1},
    ],
    ids=lambda options: ", ".join(options),
)
def test_they_belong_to_votes(hvd_tf, options):
    message = f"{', '.join(options)}: only a vote has such options"
    with pytest.raises(ValueError, match=message):
        hvd_tf.DistributedOptimizer(KERAS.optimizers.SGD(1.0), **options)
    with pytest.raises(ValueError, match=message):
        hvd_tf.DistributedGradientTape(tf.GradientTape(), **options)
    with pytest.raises(TypeError, match=next(iter(options))):
        hvd_tf.allreduce(tf.ones(3), op=hvd_tf.MajorityVote, **options)


def test_joined_ranks_in_and_after_the_warm_up(hvd_tf, world):
    """Rank r has r + 1 batches; each serves the steps of the others, dense ones and votes."""
    step = Stepper(hvd_tf, warmup_steps=1, check_every=1)
    for turn in range(world.rank + 1):
        given = everyones(world, step.owned, turn)
        given = [[g * (turn <= rank) for g in theirs] for rank, theirs in enumerate(given)]
        for i, got in enumerate(step([tf.constant(g) for g in given[world.rank]])):
            if turn < 1:
                is_mean(given, i, got)
            else:
                verdict([theirs[i] for theirs in given], "zero").check(got)
    assert int(hvd_tf.join()) == world.size - 1
