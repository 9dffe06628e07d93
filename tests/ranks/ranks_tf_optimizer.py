"""DistributedOptimizer by majority vote: Keras' own loop, its files, its scalers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
import tensorflow as tf
from tf_helpers import (
    SHAPES,
    expected,
    gradients,
    plain,
    refused_alike,
    same_everywhere,
    values,
    variables,
)

RATE = 0.5
KERAS = tf.keras
LOSS = KERAS.losses.SparseCategoricalCrossentropy(from_logits=True)
NEVER = 1000  # ranks
KERAS_2 = not hasattr(KERAS.optimizers.SGD, "apply")
ONLY_KERAS_2 = pytest.mark.ranks(1 if KERAS_2 else NEVER)
ONLY_KERAS_3 = pytest.mark.ranks(NEVER if KERAS_2 else 1)


def sgd(hvd_tf, kind=KERAS.optimizers.SGD, rate=RATE, **options):
    options.setdefault("compression", hvd_tf.Compression.sign)
    return hvd_tf.DistributedOptimizer(kind(rate), **options)


def model_of(optimizer, **options) -> KERAS.Model:
    KERAS.utils.set_random_seed(3)
    layers = [
        KERAS.layers.Input((8,)),
        KERAS.layers.Dense(16, activation="relu"),
        KERAS.layers.Dense(2, dtype="float32"),
    ]
    model = KERAS.Sequential(layers)
    model.compile(optimizer=optimizer, loss=LOSS, **{"jit_compile": False, **options})
    return model


def samples(rank: int) -> tuple[np.ndarray, np.ndarray]:
    x = values(50 + rank, 32, 8)
    return x, (x[:, 0] > 0).astype(np.int32)


def fit(world, model, epochs: int = 2) -> list[np.ndarray]:
    x, y = samples(world.rank)
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    assert same_everywhere(world, *model.get_weights())
    return model.get_weights()


def equal(some: list, others: list) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


def trained_by_hand(world, steps: int, decide: Callable) -> list[np.ndarray]:
    """What fit() must give: the ranks' gradients, gathered and decided on in numpy."""
    model = model_of(KERAS.optimizers.SGD(RATE))
    x, y = samples(world.rank)
    for step in range(steps):
        part = slice(8 * (step % 4), 8 * (step % 4) + 8)
        with tf.GradientTape() as tape:
            loss = LOSS(y[part], model(x[part], training=True))
        for variable, gradient in zip(
            model.trainable_variables,
            tape.gradient(loss, model.trainable_variables),
            strict=True,
        ):
            variable.assign_sub(RATE * decide(world.allgather(plain(gradient))))
    return model.get_weights()


@pytest.mark.parametrize(
    "options",
    [{}, {"run_eagerly": True}, {"steps_per_execution": 3}],
    ids=["graph", "eager", "steps per execution"],
)
def test_fit_steps_on_verdicts(hvd_tf, world, options):
    model = model_of(sgd(hvd_tf, ties="zero"), **options)
    wanted = trained_by_hand(world, 8, lambda found: reference.verdict(found, "zero").verdict)
    for got, want in zip(fit(world, model), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@ONLY_KERAS_2
def test_legacy_optimizers_vote_too(hvd_tf, world):
    legacy = fit(world, model_of(sgd(hvd_tf, KERAS.optimizers.legacy.SGD)))
    assert equal(legacy, fit(world, model_of(sgd(hvd_tf))))


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
def test_applied_gradients_are_verdicts(hvd_tf, world, ties, mode):
    owned = variables(*SHAPES)
    optimizer = sgd(hvd_tf, ties=ties)

    def apply(given):
        optimizer.apply_gradients(list(zip(given, owned, strict=True)))

    step = tf.function(apply) if mode == "graph" else apply
    for turn in range(3):
        given = gradients(world.rank, owned, turn)
        before = [plain(v) for v in owned]
        step(given)
        for gradient, old, variable in zip(given, before, owned, strict=True):
            expected(world, gradient, ties).check((old - plain(variable)) / RATE, rtol=1e-5)
    assert same_everywhere(world, *owned)
    assert int(optimizer.iterations) == 3


def test_the_optimizer_is_still_what_it_was(hvd_tf, world):
    inner = KERAS.optimizers.Adam(0.25)
    optimizer = sgd(hvd_tf, lambda rate: inner)
    assert optimizer is inner
    assert isinstance(optimizer, KERAS.optimizers.Adam)
    assert type(optimizer).__name__ == "Adam"
    assert float(optimizer.learning_rate) == 0.25
    copy = type(optimizer).from_config(optimizer.get_config())
    assert type(copy) is KERAS.optimizers.Adam
    assert float(copy.learning_rate) == 0.25
    with pytest.raises(ValueError, match="has wrapped it already"):
        sgd(hvd_tf, lambda rate: inner)


def test_passes_are_added_up_before_they_are_voted_on(hvd_tf, world):
    (variable,) = owned = variables((3,))
    before = variable.numpy()
    optimizer = sgd(hvd_tf, backward_passes_per_step=3)

    @tf.function
    def apply(gradient):
        optimizer.apply_gradients([(gradient, variable)])

    for gradient in ([5.0, -1.0, 1.0], [-2.0, -1.0, 1.0], [-2.0, 1.0, 1.0]):
        np.testing.assert_array_equal(variable.numpy(), before)
        apply(tf.constant(gradient))
    np.testing.assert_allclose(before - variable.numpy(), [RATE, -RATE, RATE], rtol=1e-6)
    apply(tf.constant([-1.0, -1.0, -1.0]))  # begins anew
    np.testing.assert_allclose(before - variable.numpy(), [RATE, -RATE, RATE], rtol=1e-6)
    assert int(optimizer.iterations) == 4
    assert same_everywhere(world, *owned)


@pytest.mark.parametrize("average", [False, True])
def test_averaged_passes_scale(hvd_tf, world, average):
    variable = tf.Variable([0.0, 0.0])
    optimizer = sgd(
        hvd_tf,
        backward_passes_per_step=2,
        average_aggregated_gradients=average,
        scale="mean_abs",
    )
    for _ in range(2):
        optimizer.apply_gradients([(tf.constant([3.0, -1.0]), variable)])
    size = 2.0 if average else 4.0
    np.testing.assert_allclose(variable.numpy(), [-RATE * size, RATE * size], rtol=1e-6)


@pytest.mark.parametrize("average", [False, True])
def test_passes_without_a_vote(hvd_tf, world, average):
    model = KERAS.Sequential([KERAS.layers.Input((1,)), KERAS.layers.Dense(1, use_bias=False)])
    optimizer = hvd_tf.keras.DistributedOptimizer(
        KERAS.optimizers.SGD(1.0),
        backward_passes_per_step=2,
        average_aggregated_gradients=average,
    )
    # The gradient of the output itself: the input, one on every rank.
    model.compile(optimizer=optimizer, loss=lambda y, out: out, jit_compile=False)
    model.set_weights([np.array([[5.0]])])
    model.fit(np.ones((4, 1)), np.ones((4, 1)), batch_size=2, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], 4.0 if average else 3.0, rtol=1e-6)


def test_a_skipped_step_moves_nothing(hvd_tf, world):
    variable = tf.Variable([1.0, 2.0])
    optimizer = sgd(hvd_tf, KERAS.optimizers.Adam, nonfinite="skip")
    apply = tf.function(lambda g: optimizer.apply_gradients([(g, variable)]))
    bad = np.inf if world.rank == world.size - 1 else 1.0
    apply(tf.constant([bad, 1.0]))
    assert variable.numpy().tolist() == [1, 2]
    apply(tf.constant([1.0, 1.0]))
    assert (variable.numpy() < [1, 2]).all()


def scale_of(optimizer) -> float:
    found = optimizer.loss_scale if hasattr(optimizer, "loss_scale") else optimizer.dynamic_scale
    return float(tf.convert_to_tensor(found))


@pytest.mark.parametrize("scale", ["none", "mean_abs"])
def test_a_loss_scaler_skips_everywhere_or_nowhere(hvd_tf, world, scale):
    scaler = KERAS.mixed_precision.LossScaleOptimizer(KERAS.optimizers.SGD(RATE), initial_scale=64)
    optimizer = hvd_tf.DistributedOptimizer(scaler, op=hvd_tf.MajorityVote, scale=scale)
    variable = tf.Variable([0.0, 0.0], name="weight")

    @tf.function
    def apply(gradient):
        # Keras 3 divides by the scale itself; in Keras 2 whoever scaled the loss has done so.
        factor = 64.0 if hasattr(optimizer, "apply") else 1.0
        optimizer.apply_gradients([(factor * gradient, variable)])

    bad = np.inf if world.rank == 0 else 2.0
    apply(tf.constant([bad, -2.0]))
    assert variable.numpy().tolist() == [0, 0]
    assert scale_of(optimizer) == 32.0
    # Keras 3 has halved its scale.
    factor = 0.5 if hasattr(optimizer, "apply") else 1.0
    apply(tf.constant([factor * 2.0, factor * -2.0]))
    size = 1.0 if scale == "none" else 2.0
    np.testing.assert_allclose(variable.numpy(), [-RATE * size, RATE * size], rtol=1e-6)


def test_mixed_precision_by_policy(hvd_tf, world):
    KERAS.mixed_precision.set_global_policy("mixed_float16")
    try:
        optimizer = sgd(hvd_tf)
        assert isinstance(optimizer, KERAS.mixed_precision.LossScaleOptimizer)
        model = model_of(optimizer)
        assert model.optimizer is optimizer
        before = model_of(sgd(hvd_tf)).get_weights()
        assert not equal(before, fit(world, model))
    finally:
        KERAS.mixed_precision.set_global_policy("float32")


def test_a_loss_scaler_outside_is_refused(hvd_tf, world):
    with pytest.raises(ValueError, match="wrap the other way round"):
        KERAS.mixed_precision.LossScaleOptimizer(sgd(hvd_tf))


@ONLY_KERAS_3
def test_keras_own_accumulation_is_refused(hvd_tf, world):
    inner = KERAS.optimizers.SGD(RATE, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="backward_passes_per_step=4"):
        hvd_tf.DistributedOptimizer(inner, op=hvd_tf.MajorityVote)


def test_what_is_no_keras_optimizer_is_refused(hvd_tf, world):
    for wrong in (tf.compat.v1.train.GradientDescentOptimizer(0.1), "sgd", None):
        with pytest.raises(TypeError, match="optimizer: expected a Keras optimizer"):
            hvd_tf.DistributedOptimizer(wrong, op=hvd_tf.MajorityVote)


@pytest.mark.ranks(2)
def test_other_variables_on_a_rank_are_an_error_everywhere(hvd_tf, world):
    variable = tf.Variable(tf.zeros(2 + (world.rank == 1)))
    optimizer = sgd(hvd_tf)
    message = refused_alike(
        world, lambda: optimizer.apply_gradients([(tf.ones(variable.shape), variable)])
    )
    assert "shape differs between ranks" in message


def test_xla_is_refused_where_nobody_switches_it_off(hvd_tf, world):
    model = model_of(sgd(hvd_tf), jit_compile=True)
    with pytest.raises(RuntimeError, match="XLA cannot compile"):
        fit(world, model)


def test_a_keras_file_goes_on(hvd_tf, world, tmp_path):
    file = tmp_path / "model.keras"
    unbroken = model_of(sgd(hvd_tf, KERAS.optimizers.Adam, 0.01))
    fit(world, unbroken, epochs=1)
    unbroken.save(file)
    wanted = fit(world, unbroken, epochs=1)
    loaded = hvd_tf.keras.load_model(file, compression=hvd_tf.Compression.sign)
    assert equal(fit(world, loaded, epochs=1), wanted)
    assert type(KERAS.models.load_model(file).optimizer) is KERAS.optimizers.Adam


def test_a_model_without_an_optimizer_is_refused(hvd_tf, world, tmp_path):
    file = tmp_path / "model.keras"
    KERAS.Sequential([KERAS.layers.Input((2,)), KERAS.layers.Dense(1)]).save(file)
    with pytest.raises(ValueError, match="holds a model without an optimizer"):
        hvd_tf.keras.load_model(file, compression=hvd_tf.Compression.sign)


@pytest.mark.parametrize("alone", [False, True], ids=["every rank reads", "rank 0 reads"])
def test_a_checkpoint_goes_on(hvd_tf, world, tmp_path, alone):
    def start():
        variable = tf.Variable(tf.zeros(256))
        optimizer = sgd(hvd_tf, KERAS.optimizers.SGD, 1.0)
        return variable, optimizer, tf.train.Checkpoint(weight=variable, optimizer=optimizer)

    def steps(variable, optimizer, count):
        for _ in range(count):
            # Zeros but for one: coins decide.
            optimizer.apply_gradients([(tf.one_hot([0, 70, 140, 210], 256)[0], variable)])

    variable, optimizer, checkpoint = start()
    steps(variable, optimizer, 3)
    path = checkpoint.write(str(tmp_path / "state"))
    at_checkpoint = variable.numpy()
    steps(variable, optimizer, 2)
    assert len(set(variable.numpy()[:64])) > 2
    again, other, checkpoint = start()
    if not alone or world.rank == 0:
        checkpoint.read(path)
    again.assign(at_checkpoint)
    steps(again, other, 2)
    np.testing.assert_array_equal(again.numpy(), variable.numpy())


def test_steps_are_broadcast(hvd_tf, world):
    variable, optimizer = tf.Variable([0.0]), sgd(hvd_tf)
    for _ in range(2):
        optimizer.apply_gradients([(tf.ones(1), variable)])
    other = sgd(hvd_tf)
    if world.rank == 0:
        other._hvd_sign.load_state({"0/step": np.array(7)})
    other.broadcast_exchange_state(0)
    other.apply_gradients([(tf.ones(1), variable)])
    assert other._hvd_sign.common_state() == {0: {"step": 8}}


def test_without_a_vote_fit_steps_on_means(hvd_tf, world):
    optimizer = hvd_tf.keras.DistributedOptimizer(KERAS.optimizers.SGD(RATE))
    found = fit(world, model_of(optimizer))
    wanted = trained_by_hand(world, 8, lambda all_ranks: np.mean(all_ranks, axis=0))
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_without_a_vote_embeddings_and_loss_scaling_work(hvd_tf, world):
    KERAS.mixed_precision.set_global_policy("mixed_float16")
    KERAS.utils.set_random_seed(1)
    try:
        model = KERAS.Sequential(
            [KERAS.layers.Embedding(5, 4), KERAS.layers.Dense(1, dtype="float32")]
        )
        model.compile(
            optimizer=hvd_tf.keras.DistributedOptimizer(KERAS.optimizers.SGD(0.1)),
            loss="mse",
            jit_compile=False,
        )
        x = np.full((8, 3), world.rank % 5)
        model.build((None, 3))
        before = model.get_weights()
        model.fit(x, np.ones((8, 3, 1)), batch_size=4, verbose=0)
        assert not equal(before[:1], model.get_weights()[:1])
        assert same_everywhere(world, *model.get_weights())
    finally:
        KERAS.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("name", ["clipnorm", "global_clipnorm"])
def test_norms_that_clip_verdicts_are_warned_of(hvd_tf, world, caplog, name):
    for options in ({"scale": "mean_abs"}, {"clip_norm": 1.0}):
        sgd(hvd_tf, lambda rate: KERAS.optimizers.SGD(rate, **{name: 1.0}), **options)
        warns = world.rank == 0 and "scale" not in options
        assert (f"{name}=1 clips verdicts" in caplog.text) == warns
