"""SignSGD, Signum and Lion in Keras' files, TensorFlow's checkpoints, and Keras' own loop."""

from __future__ import annotations

import pytest
import tensorflow as tf
from tf_helpers import SHAPES, assert_equal, fit, gradients, same_everywhere, small_model, variables

KERAS = tf.keras
KINDS = ("SignSGD", "Signum", "Lion")


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
@pytest.mark.parametrize(
    ("kind", "scaled"), [("SignSGD", False), ("Signum", True), ("Lion", False), ("Lion", True)]
)
def test_a_keras_file_goes_on_bit_for_bit(hvd_tf, world, kind, scaled, wrapped, tmp_path):
    """With a schedule, weight decay, and several steps per execution."""
    schedule = KERAS.optimizers.schedules.ExponentialDecay(0.01, 4, 0.9)
    optimizer = getattr(hvd_tf, kind)(schedule, weight_decay=0.1, seed=5)
    if scaled:
        optimizer = KERAS.mixed_precision.LossScaleOptimizer(optimizer, dynamic_growth_steps=3)
    load = KERAS.models.load_model
    if wrapped:
        optimizer, load = hvd_tf.DistributedOptimizer(optimizer), hvd_tf.keras.load_model
    unbroken = small_model(optimizer, steps_per_execution=4)
    fit(unbroken, world.rank)
    file = tmp_path / f"{world.rank}.keras"
    unbroken.save(file)
    wanted = fit(unbroken, world.rank)
    loaded = load(file)
    inner = getattr(loaded.optimizer, "inner_optimizer", loaded.optimizer)
    assert isinstance(inner, getattr(hvd_tf, kind))
    assert_equal(fit(loaded, world.rank), wanted)
    if wrapped:
        assert same_everywhere(world, *wanted)
        again = KERAS.models.load_model(file)
        inner = getattr(again.optimizer, "inner_optimizer", again.optimizer)
        assert type(inner) is getattr(hvd_tf, kind)
        assert int(again.optimizer.iterations) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_on_bit_for_bit(hvd_tf, kind, tmp_path):
    def start():
        owned = variables(*SHAPES)
        optimizer = getattr(hvd_tf, kind)(0.5, weight_decay=0.1)
        optimizer.build(owned)
        return owned, optimizer, tf.train.Checkpoint(weights=owned, optimizer=optimizer)

    def steps(owned, optimizer, turns):
        for turn in turns:
            given = gradients(0, owned, turn)
            optimizer.apply_gradients(list(zip(given, owned, strict=True)))

    owned, optimizer, checkpoint = start()
    steps(owned, optimizer, range(3))
    path = checkpoint.write(str(tmp_path / "state"))
    again, other, checkpoint = start()
    checkpoint.read(path)
    steps(owned, optimizer, range(3, 6))
    steps(again, other, range(3, 6))
    assert_equal(owned, again)


@pytest.mark.parametrize("kind", KINDS)
def test_its_arguments_are_its_config(hvd_tf, kind):
    betas = {"SignSGD": {}, "Signum": {"beta": 0.5}, "Lion": {"beta_1": 0.5, "beta_2": 0.75}}[kind]
    given = {"weight_decay": 0.25, "ties": "zero", "seed": 3, "scale": "mean_abs", "name": "mine"}
    given |= {**betas, "clipnorm": 2.0, "use_ema": True}
    optimizer = getattr(hvd_tf, kind)(0.125, **given)
    config = optimizer.get_config()
    assert given.items() <= config.items()
    assert config["learning_rate"] == 0.125
    copy = type(optimizer).from_config(config)
    assert copy.get_config() == config
    assert copy.vote_keywords() == optimizer.vote_keywords()
    serialized = KERAS.optimizers.serialize(optimizer)
    restored = KERAS.optimizers.deserialize(serialized)
    assert type(restored) is type(optimizer)
    assert restored.get_config() == config
