"""hvd.keras.callbacks in Model.fit, whose expectations are formulas of Horovod's documentation."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf
from tf_helpers import same_everywhere

STEPS = 4


class Watch(tf.keras.callbacks.Callback):
    """Notes what later callbacks see."""

    def __init__(self):
        super().__init__()
        self.rates, self.momenta, self.logs = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.rates.append(float(tf.convert_to_tensor(optimizer.learning_rate)))
        self.momenta.append(float(tf.convert_to_tensor(getattr(optimizer, "momentum", 0.0))))

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


@pytest.fixture
def data(world):
    """Other data on each rank."""
    rng = np.random.default_rng([3, world.rank])
    x = rng.normal(size=(8 * STEPS, 5)).astype("float32")
    return x, x.sum(1, keepdims=True)


def network(world, optimizer, *, built=True, **compiling):
    """A small network that begins with other weights on each rank."""
    tf.keras.utils.set_random_seed(100 + world.rank)
    layers = [tf.keras.layers.Dense(4, activation="relu"), tf.keras.layers.Dense(1)]
    if built:
        layers.insert(0, tf.keras.layers.Input((5,)))
    model = tf.keras.Sequential(layers)
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"], **compiling)
    return model


def fit(model, data, *callbacks, epochs=1):
    return model.fit(
        *data, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )


def test_all_begin_with_the_weights_of_the_root(hvd_tf, world, data):
    root = world.size - 1
    model = network(world, tf.keras.optimizers.SGD(0.0))
    expected = world.bcast(model.get_weights(), root)
    fit(model, data, hvd_tf.keras.callbacks.BroadcastGlobalVariablesCallback(root))
    for weight, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, wanted)


def test_models_that_are_built_by_the_first_batch(hvd_tf, world, data):
    # On one rank alone, as after loading a checkpoint there.
    model = network(world, tf.keras.optimizers.SGD(0.0), built=world.rank == 0)
    fit(model, data, hvd_tf.keras.callbacks.BroadcastGlobalVariablesCallback(0))
    assert same_everywhere(world, *model.get_weights())


def test_the_optimizers_state_is_broadcast(hvd_tf, world, data):
    model = network(world, tf.keras.optimizers.Adam(0.0))
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    if world.rank == 0:
        optimizer.iterations.assign(7)
    fit(model, data, hvd_tf.keras.callbacks.BroadcastGlobalVariablesCallback(0))
    assert int(optimizer.iterations) == 7 + STEPS


@pytest.mark.ranks(2)
def test_local_variables_stay(hvd_tf, world, data):
    model = network(world, tf.keras.optimizers.SGD(0.0))
    mine, shared = model.layers[0].kernel, model.layers[-1].kernel
    before = np.asarray(mine)
    callback = hvd_tf.keras.callbacks.BroadcastGlobalVariablesCallback(0, local_variables=mine)
    fit(model, data, callback)
    np.testing.assert_array_equal(np.asarray(mine), before)
    assert not same_everywhere(world, mine)
    assert same_everywhere(world, shared)
    with pytest.raises(ValueError, match=r"local_variables: expected tf.Variable, got 3"):
        hvd_tf.keras.callbacks.BroadcastGlobalVariablesCallback(0, local_variables=[3])


def test_voters_stay_together_and_without_xla(hvd_tf, world, data, caplog):
    optimizer = hvd_tf.DistributedOptimizer(
        tf.keras.optimizers.SGD(0.01), compression=hvd_tf.Compression.sign
    )
    model = network(world, optimizer, jit_compile=True)
    with caplog.at_level(logging.WARNING, logger="hvd_sign"):
        fit(model, data, hvd_tf.keras.callbacks.BroadcastGlobalVariablesCallback(0), epochs=2)
    assert same_everywhere(world, *model.get_weights())
    said = [record.message for record in caplog.records if "jit_compile" in record.message]
    assert len(said) == (1 if world.rank == 0 else 0)


def test_metrics_are_averaged_for_later_callbacks(hvd_tf, world, data):
    before, after = Watch(), Watch()
    model = network(world, tf.keras.optimizers.SGD(0.0))
    fit(model, data, before, hvd_tf.keras.callbacks.MetricAverageCallback(), after, epochs=2)
    for own, mean in zip(before.logs, after.logs, strict=True):
        every = world.allgather(own)
        assert set(mean) == set(own) >= {"loss", "mae"}
        for name, value in mean.items():
            np.testing.assert_allclose(value, np.mean([logs[name] for logs in every]), rtol=1e-6)
        assert world.size == 1 or len({logs["loss"] for logs in every}) > 1


def test_rates_by_epoch(hvd_tf, world, data):
    watch = Watch()
    schedule = hvd_tf.keras.callbacks.LearningRateScheduleCallback(
        0.5, 0.1, start_epoch=1, end_epoch=3
    )
    model = network(world, tf.keras.optimizers.SGD(0.25))
    history = fit(model, data, schedule, watch, epochs=4)
    expected = np.repeat([0.25, 0.5, 0.05, 0.05], STEPS)
    np.testing.assert_allclose(watch.rates, expected, rtol=1e-6)
    np.testing.assert_allclose(history.history["lr"], expected[::STEPS], rtol=1e-6)


def test_rates_by_batch(hvd_tf, world, data):
    watch = Watch()
    schedule = hvd_tf.keras.callbacks.LearningRateScheduleCallback(
        1.0, lambda epoch: 1 / (1 + epoch), staircase=False
    )
    fit(network(world, tf.keras.optimizers.SGD(1.0)), data, schedule, watch, epochs=2)
    expected = [1 / (1 + i / STEPS) for i in range(2 * STEPS)]
    np.testing.assert_allclose(watch.rates, expected, rtol=1e-6)


def test_warmup(hvd_tf, world, data, capsys):
    watch = Watch()
    warmup = hvd_tf.keras.callbacks.LearningRateWarmupCallback(0.5, warmup_epochs=2, verbose=1)
    fit(network(world, tf.keras.optimizers.SGD(0.5)), data, warmup, watch, epochs=3)
    # Horovod's formula, at the end of each batch.
    ends = [(i + 1) / STEPS for i in range(2 * STEPS)]
    ramp = [0.5 / world.size * ((world.size - 1) / 2 * epoch + 1) for epoch in ends]
    np.testing.assert_allclose(watch.rates, ramp + [0.5] * STEPS, rtol=1e-6)
    told = "Epoch 2: finished gradual learning rate warmup to 0.5." in capsys.readouterr().out
    assert told == (world.rank == 0)


def test_momentum_is_corrected_for_one_batch(hvd_tf, world, data):
    watch = Watch()
    schedule = hvd_tf.keras.callbacks.LearningRateScheduleCallback(0.5, 0.5)
    optimizer = tf.keras.optimizers.SGD(0.25, momentum=0.4)
    model = network(world, optimizer, run_eagerly=True)
    fit(model, data, schedule, watch, epochs=2)
    # From 0.25 to 0.5, then from 0.5 to 0.25.
    expected = [0.8, *[0.4] * (STEPS - 1), 0.2, *[0.4] * (STEPS - 1)]
    np.testing.assert_allclose(watch.momenta, expected, rtol=1e-6)


def test_schedules_that_cannot_be(hvd_tf, world, data):
    callbacks = hvd_tf.keras.callbacks
    with pytest.raises(ValueError, match="initial_lr: expected a number, got None"):
        callbacks.LearningRateScheduleCallback(None, 0.1)
    decay = tf.keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model = network(world, tf.keras.optimizers.SGD(decay))
    with pytest.raises(ValueError, match="a schedule of its own, ExponentialDecay"):
        fit(model, data, callbacks.LearningRateScheduleCallback(0.5, 0.1))


def test_the_best_model_is_kept(hvd_tf, world, data, tmp_path):
    checkpoint = hvd_tf.keras.callbacks.BestModelCheckpoint(monitor="loss", save_weights_only=True)
    model = network(world, tf.keras.optimizers.SGD(0.01))
    with pytest.raises(ValueError, match=r"BestModelCheckpoint\.filepath"):
        fit(model, data, checkpoint)
    checkpoint.filepath = tmp_path / f"{world.rank}.weights.h5"
    fit(model, data, checkpoint, epochs=2)
    kept = network(world, tf.keras.optimizers.SGD(0.01))
    kept.load_weights(checkpoint.filepath)
    for weight, wanted in zip(kept.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, wanted)  # the last epoch's, as the loss falls
