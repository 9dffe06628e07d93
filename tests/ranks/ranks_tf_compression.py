"""hvd.Compression.signum and lion, and a user's own compressor: whatever votes takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf
from reference import verdict
from tf_helpers import (
    SHAPES,
    assert_equal,
    fit,
    gradients,
    plain,
    recorded,
    same_everywhere,
    small_model,
    stepped,
    variables,
)

from hvd_sign.algorithms import Algorithm

KERAS = tf.keras
KERAS_3 = hasattr(KERAS.optimizers.SGD, "apply")
KINDS = ("signum", "lion")
RATE = 0.5


def compressor(hvd_tf, kind):
    return getattr(hvd_tf.Compression, kind)()


class Everyones:
    """All ranks' momentum, stepped in numpy by what each of them is given."""

    def __init__(self, world, kind, owned) -> None:
        self.world, self.kind = world, kind
        self.kept = [[np.zeros(v.shape, np.float32) for v in owned] for _ in range(world.size)]

    def signals(self, given: list) -> list:
        """By variable, all ranks' signals; ``given``: by rank, all gradients."""
        found: list = [[] for _ in given[0]]
        for kept, grads in zip(self.kept, given, strict=True):
            for i, gradient in enumerate(grads):
                signal, kept[i] = stepped(self.kind, kept[i], np.asarray(gradient, np.float32))
                found[i].append(signal)
        return found

    def of(self, owned: list, turn: int) -> list:
        return self.signals([gradients(r, owned, turn) for r in range(self.world.size)])


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("ties", ["coin", "zero"])
@pytest.mark.parametrize("kind", KINDS)
def test_optimizers(hvd_tf, world, kind, ties, mode):
    owned = variables(*SHAPES)
    optimizer = hvd_tf.DistributedOptimizer(
        KERAS.optimizers.SGD(RATE), compression=compressor(hvd_tf, kind), ties=ties
    )

    def apply(given):
        optimizer.apply_gradients(list(zip(given, owned, strict=True)))

    step, everyones = (
        tf.function(apply) if mode == "graph" else apply,
        Everyones(world, kind, owned),
    )
    for turn in range(3):
        before = [plain(v) for v in owned]
        step(gradients(world.rank, owned, turn))
        for signals, old, variable in zip(everyones.of(owned, turn), before, owned, strict=True):
            verdict(signals, ties).check((old - plain(variable)) / RATE, rtol=1e-5)
    assert same_everywhere(world, *owned)


@pytest.mark.parametrize("kind", KINDS)
def test_tapes(hvd_tf, world, kind):
    owned = variables(*SHAPES)
    compression = compressor(hvd_tf, kind)
    everyones = Everyones(world, kind, owned)
    for turn in range(3):
        tape, target = recorded(owned, gradients(world.rank, owned, turn))
        tape = hvd_tf.DistributedGradientTape(tape, compression=compression)
        found = tape.gradient(target, owned)
        for signals, gradient in zip(everyones.of(owned, turn), found, strict=True):
            verdict(signals, "coin").check(plain(gradient))


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("kind", KINDS)
def test_single_votes_keep_state_by_their_name(hvd_tf, world, kind, mode):
    compression = compressor(hvd_tf, kind)
    everyones = {name: Everyones(world, kind, [tf.zeros(70)]) for name in ("one", "other")}

    def vote(tensor, name):
        return hvd_tf.allreduce(tensor, name=f"{kind} {mode} {name}", compression=compression)

    if mode == "graph":
        vote = tf.function(vote)
    for turn in range(4):
        for name in everyones if turn % 2 else reversed(everyones):
            seeds = [[rank, turn, len(name)] for rank in range(world.size)]
            given = [np.random.default_rng(s).standard_normal((1, 70)) for s in seeds]
            out = vote(tf.constant(given[world.rank][0], tf.float32), name)
            (signals,) = everyones[name].signals(given)
            verdict(signals, "coin").check(out)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_votes(hvd_tf, world, kind):
    shapes, compression = [tf.zeros(5), tf.zeros((3, 4))], compressor(hvd_tf, kind)
    everyones = Everyones(world, kind, shapes)
    for turn in range(2):
        mine = gradients(world.rank, shapes, turn)
        outs = hvd_tf.grouped_allreduce(mine, name=f"group {kind}", compression=compression)
        for signals, out in zip(everyones.of(shapes, turn), outs, strict=True):
            verdict(signals, "coin").check(out)


def test_single_votes_with_state_need_a_name(hvd_tf, world):
    with pytest.raises(ValueError, match="expected one, got None"):
        hvd_tf.allreduce(tf.ones(3), compression=hvd_tf.Compression.signum())


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_on_bit_for_bit(hvd_tf, world, kind, tmp_path):
    def start():
        owned = variables(*SHAPES)
        optimizer = hvd_tf.DistributedOptimizer(
            KERAS.optimizers.SGD(RATE, momentum=0.5), compression=compressor(hvd_tf, kind)
        )
        optimizer.build(owned)
        return owned, optimizer, tf.train.Checkpoint(weights=owned, optimizer=optimizer)

    def steps(owned, optimizer, turns):
        for turn in turns:
            given = gradients(world.rank, owned, turn)
            optimizer.apply_gradients(list(zip(given, owned, strict=True)))

    owned, optimizer, checkpoint = start()
    steps(owned, optimizer, range(3))
    path = checkpoint.write(str(tmp_path / f"state of {world.rank}"))
    steps(owned, optimizer, range(3, 6))
    again, other, checkpoint = start()
    checkpoint.read(path)
    steps(again, other, range(3, 6))
    assert_equal(owned, again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_keras_file_goes_on_bit_for_bit(hvd_tf, world, kind, tmp_path):
    compression, file = compressor(hvd_tf, kind), tmp_path / f"{world.rank}.keras"
    adam = KERAS.optimizers.Adam(0.01)
    unbroken = small_model(hvd_tf.DistributedOptimizer(adam, compression=compression))
    fit(unbroken, world.rank)
    unbroken.save(file)
    wanted = fit(unbroken, world.rank)
    assert same_everywhere(world, *wanted)
    loaded = hvd_tf.keras.load_model(file, compression=compression)
    assert_equal(fit(loaded, world.rank), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_scaler_changes_nothing_but_what_it_skips(hvd_tf, world, kind):
    """A power of two, which halves at the step in which one rank's gradients overflow."""
    owned = variables((300,))
    inner = KERAS.optimizers.SGD(RATE)
    optimizer = hvd_tf.DistributedOptimizer(
        KERAS.mixed_precision.LossScaleOptimizer(inner, initial_scale=64.0),
        compression=compressor(hvd_tf, kind),
    )
    optimizer.build(owned)

    @tf.function
    def step(gradient):
        # Keras 3 divides by the scale itself; in Keras 2 whoever scaled the loss has done so.
        factor = optimizer.dynamic_scale if KERAS_3 else 1.0
        optimizer.apply_gradients([(gradient * factor, owned[0])])

    everyones = Everyones(world, kind, owned)
    for turn in range(5):
        (given,) = gradients(world.rank, owned, turn)
        before = plain(owned[0])
        if turn == 2:
            bad = np.inf if world.rank == world.size - 1 else 1.0
            step(given * tf.constant(bad))
            np.testing.assert_array_equal(plain(owned[0]), before)
            continue
        step(given)
        (signals,) = everyones.of(owned, turn)
        verdict(signals, "coin").check((before - plain(owned[0])) / RATE, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_slices_become_dense(hvd_tf, world, kind):
    """Rows that nobody has used stay; those that are used twice in a batch are added up."""
    table = tf.Variable(tf.zeros((6, 64)))
    optimizer = hvd_tf.DistributedOptimizer(
        KERAS.optimizers.SGD(RATE), compression=compressor(hvd_tf, kind), sparse_as_dense=True
    )
    everyones = Everyones(world, kind, [table])
    for turn in range(3):
        used = [[0, 1 + rank % 3, 0] for rank in range(world.size)]
        found = [
            np.random.default_rng([rank, turn]).standard_normal((3, 64)).astype(np.float32)
            for rank in range(world.size)
        ]
        dense = np.zeros((world.size, 1, 6, 64), np.float32)
        for rank in range(world.size):
            for row, numbers in zip(used[rank], found[rank], strict=True):
                dense[rank, 0, row] += numbers
        before = plain(table)
        slices = tf.IndexedSlices(
            tf.constant(found[world.rank]), tf.constant(used[world.rank]), tf.constant([6, 64])
        )
        optimizer.apply_gradients([(slices, table)])
        (signals,) = everyones.signals(list(dense))
        verdict(signals, "coin").check((before - plain(table)) / RATE, rtol=1e-5)
    assert not table.numpy()[5].any()


@dataclass(frozen=True)
class Doubled(Algorithm):
    """Votes on the gradient and half of the one before it."""

    name = "doubled"
    planes = ("last",)

    def step(self, gradient, state):
        return gradient + 0.5 * state["last"], {"last": gradient}


def test_an_algorithm_of_ones_own(hvd_tf, world):
    owned = variables((300,))
    optimizer = hvd_tf.DistributedOptimizer(
        KERAS.optimizers.SGD(RATE), compression=hvd_tf.VoteCompressor(Doubled())
    )
    last = [np.zeros(300, np.float32)] * world.size
    for turn in range(3):
        before = plain(owned[0])
        optimizer.apply_gradients([(gradients(world.rank, owned, turn)[0], owned[0])])
        now = [gradients(rank, owned, turn)[0].numpy() for rank in range(world.size)]
        signals = [a + np.float32(0.5) * b for a, b in zip(now, last, strict=True)]
        verdict(signals, "coin").check((before - plain(owned[0])) / RATE, rtol=1e-5)
        last = now
    assert hvd_tf.keras.VoteCompressor is hvd_tf.VoteCompressor


def test_compressors_that_are_no_ones_own(hvd_tf):
    sgd = KERAS.optimizers.SGD(RATE)
    with pytest.raises(TypeError, match=r"such as hvd.Compression.signum\(\), got .* itself"):
        hvd_tf.DistributedOptimizer(sgd, compression=hvd_tf.Compression.signum)
    with pytest.raises(ValueError, match=r"signum\(beta=0.5\) has its own, got 'lion'"):
        hvd_tf.DistributedOptimizer(
            sgd, compression=hvd_tf.Compression.signum(0.5), algorithm="lion"
        )
