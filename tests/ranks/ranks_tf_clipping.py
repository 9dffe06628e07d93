"""Gradients that each rank clips before the vote: what momentum, scales and means make of them.

What is clipped is told by TensorFlow's own clip_by_global_norm and clip_by_value.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from additions.momentum import FusedMomentum
from reference import lower_median, verdict
from tf_helpers import TRAINED, Stepper, assert_equal, carried, everyones, loss_scaled

BIG = (True, False, True, False)
BETA = 0.75
CLIPS = [{"clip_value": 0.5}, {"clip_norm": 2.0}, {"clip_norm": 1e6}]


def clipped(given: list, clip_value=None, clip_norm=None) -> list[np.ndarray]:
    """By TensorFlow's own, in fp64; None stays None."""
    wide = [None if g is None else tf.constant(g, tf.float64) for g in given]
    if clip_value is not None:
        done = [g if g is None else tf.clip_by_value(g, -clip_value, clip_value) for g in wide]
    else:
        done, _ = tf.clip_by_global_norm(wide, clip_norm)
    return [None if g is None else g.numpy() for g in done]


@pytest.mark.parametrize(
    ("clip", "mode"), zip(CLIPS, ("graph", "eager", "graph"), strict=True), ids=str
)
def test_momentum_takes_in_what_is_clipped(hvd_tf, world, clip, mode):
    step = Stepper(hvd_tf, mode, algorithm=FusedMomentum(BETA), bucket_bytes=100, **clip)
    kept = [[np.zeros(shape) for shape in TRAINED] for _ in range(world.size)]
    for turn in range(3):
        everything = everyones(world, step.owned, turn)
        given = [tf.constant(g) for g in everything[world.rank]]
        found = step(given)
        assert_equal(given, everything[world.rank])  # whoever else holds them sees no change
        for rank in range(world.size):
            for i, g in enumerate(clipped(everything[rank], **clip)):
                kept[rank][i] = BETA * kept[rank][i] + (1 - BETA) * g
        for i, got in enumerate(found):
            mine = kept[world.rank][i].reshape(-1)
            np.testing.assert_allclose(step.state()[f"v/{i}"], mine, rtol=1e-4, atol=1e-7)
            verdict([arrays[i] for arrays in kept], "zero").check(got)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_a_sign_stays_and_sizes_shrink(hvd_tf, world, clip):
    """The scale of ``mean_abs``, and the means of what is dense."""
    step = Stepper(hvd_tf, scale="mean_abs", min_size=34, **clip)
    raw = everyones(world, step.owned, 0)
    given = [clipped(theirs, **clip) for theirs in raw]
    for i, got in enumerate(step([tf.constant(g) for g in raw[world.rank]])):
        if BIG[i]:
            size = lower_median([float(np.abs(theirs[i]).mean()) for theirs in given])
            verdict([theirs[i] for theirs in raw], "zero").check(got, size, rtol=1e-5)
        else:
            wanted = np.mean([theirs[i] for theirs in given], axis=0)
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("clip", "average"), zip(CLIPS, (True, False, True), strict=True), ids=str)
def test_passes_are_clipped_as_one_and_absent_gradients_have_no_norm(hvd_tf, world, clip, average):
    step = Stepper(
        hvd_tf,
        "eager",
        min_size=10**6,
        backward_passes_per_step=2,
        average_aggregated_gradients=average,
        **clip,
    )
    for turn in range(2):
        both = [everyones(world, step.owned, 2 * turn + half) for half in range(2)]
        given = []
        for rank in range(world.size):
            sums = [
                (a + b) / (1 + average) for a, b in zip(*(half[rank] for half in both), strict=True)
            ]
            sums[2] = None if rank == 0 else sums[2]
            given.append(clipped(sums, **clip))
        for half in range(2):
            mine = [tf.constant(g) for g in both[half][world.rank]]
            mine[2] = None if world.rank == 0 else mine[2]
            found = step(mine)
        for i, got in enumerate(found):
            theirs = [np.zeros(TRAINED[i]) if g[i] is None else g[i] for g in given]
            np.testing.assert_allclose(got, np.mean(theirs, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("clip", "scale"), zip(CLIPS, ("mean_abs", "mean_abs", "none"), strict=True), ids=str
)
def test_what_is_clipped_is_unscaled(hvd_tf, world, clip, scale):
    step = Stepper(hvd_tf, "graph", loss_scaled(64.0), min_size=34, scale=scale, **clip)
    step.optimizer.build(step.owned)
    for turn in range(2):
        raw = everyones(world, step.owned, turn)
        given = [clipped(theirs, **clip) for theirs in raw]
        for i, got in enumerate(step(carried(step.optimizer, raw[world.rank]))):
            if not BIG[i]:
                wanted = np.mean([theirs[i] for theirs in given], axis=0)
                np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
            elif scale == "mean_abs":
                size = lower_median([float(np.abs(theirs[i]).mean()) for theirs in given])
                verdict([theirs[i] for theirs in raw], "zero").check(got, size, rtol=1e-4)


@pytest.mark.parametrize(
    ("clip", "bad"), zip(CLIPS, (np.inf, np.nan, -np.inf), strict=True), ids=str
)
def test_the_rest_of_what_is_not_finite_is_clipped(hvd_tf, world, bad, clip):
    """One chunk of rank 0 counts as zeros; the norm is that of the finite coordinates."""
    step = Stepper(hvd_tf, min_size=10**6, **clip)
    raw = everyones(world, step.owned, 0)
    raw[0][2][4500] = 0.0
    wanted = [clipped(theirs, **clip) for theirs in raw]
    wanted[0][2][4096:] = 0
    if world.rank == 0:
        raw[0][2][4500] = bad
    for i, got in enumerate(step([tf.constant(g) for g in raw[world.rank]])):
        mean = np.mean([theirs[i] for theirs in wanted], axis=0)
        np.testing.assert_allclose(got, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [*CLIPS, {"backward_passes_per_step": 2}], ids=str)
def test_subnormals_stay_numbers(hvd_tf, options):
    """Also on TensorFlow's threads, which take them for zeros."""
    step = Stepper(hvd_tf, **options)
    sizes = (np.float32(-1e-40), np.float32(100), np.float32(1e-40), np.float32(1))
    given = [np.full(shape, size) for shape, size in zip(TRAINED, sizes, strict=True)]
    for _ in range(options.get("backward_passes_per_step", 1)):
        found = step([tf.constant(g) for g in given])
    for got, size in zip(found, sizes, strict=True):
        assert (got == np.sign(size)).all()
