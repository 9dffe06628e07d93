"""SignSGD, Signum and Lion as Keras' optimizers: alone, wrapped, in files."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from reference import verdict
from tf_helpers import gradients, plain, same_everywhere, stepped, variables

KERAS = tf.keras
KERAS_3 = hasattr(KERAS.optimizers.SGD, "apply")
ONLY_KERAS_3 = pytest.mark.ranks(1 if KERAS_3 else 1000)
SHAPES = ((64, 10), (10,), (5000,), ())
KINDS = {"SignSGD": "sign", "Signum": "signum", "Lion": "lion"}
MODES = ("eager", "graph")


@pytest.fixture(scope="module")
def lone(hvd_tf, world):
    """Process sets of one rank each."""
    if world.size == 1:
        yield [hvd_tf.global_process_set]
        return
    sets = [hvd_tf.add_process_set([rank]) for rank in range(world.size)]
    yield sets
    world.Barrier()
    for made in sets:
        assert hvd_tf.remove_process_set(made)


def make(hvd_tf, kind, rate=0.5, **options):
    return getattr(hvd_tf, kind)(rate, **options)


def stepping(optimizer, owned, mode):
    """A step on a list of gradients."""

    def step(given):
        optimizer.apply_gradients(list(zip(given, owned, strict=True)))

    return tf.function(step) if mode == "graph" else step


def kept_by(optimizer, position=0):
    """The momentum that stands in the optimizer's variables."""
    found = [v for v in optimizer.variables if "momentum" in v.name]
    return np.asarray(found[position])


def awkward(rank, owned, turn):
    """Gradients with zeros, subnormals, and chunks that are not finite at times."""
    given = [np.array(g.numpy()) for g in gradients(rank, owned, turn)]
    given[0][1:3] = 0
    given[0][3] = 1e-39 if given[0].dtype == np.float32 else 0
    given[2][100] = [0.0, np.inf, np.nan][turn % 3]
    given[2][4096:] = 0
    return [tf.constant(g) for g in given]


@pytest.mark.parametrize(
    ("dtype", "mode", "options"),
    [
        ("float32", "graph", {}),
        ("float32", "eager", {"ties": "positive", "seed": 7}),
        ("float64", "graph", {"ties": "zero"}),
        ("bfloat16", "graph", {"scale": "mean_abs"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_alone_as_in_a_world_of_one(hvd_tf, lone, world, kind, options, dtype, mode):
    """Bit for bit."""
    alone, among = variables(*SHAPES, dtype=dtype), variables(*SHAPES, dtype=dtype)
    one = make(hvd_tf, kind, weight_decay=0.125, **options)
    other = make(hvd_tf, kind, weight_decay=0.125, **options)
    other = hvd_tf.DistributedOptimizer(other, process_set=lone[world.rank])
    first, second = stepping(one, alone, mode), stepping(other, among, mode)
    for turn in range(4):
        given = awkward(world.rank, alone, turn)
        first(given)
        second(given)
        for p, q in zip(alone, among, strict=True):
            np.testing.assert_array_equal(plain(p), plain(q))
    if kind != "SignSGD":
        state = other.exchange_state._exchanges.state()
        for position, p in enumerate(alone):
            kept = kept_by(one, position)
            assert kept.dtype == (np.float64 if dtype == "float64" else np.float32)
            assert kept.shape == p.shape
            np.testing.assert_array_equal(kept.reshape(-1), state[f"0/momentum/{position}"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_alone_by_the_papers_lines(hvd_tf, kind, mode):
    """No gradient: neither the variable nor its momentum moves. Other variables next time."""
    owned = variables(*SHAPES)
    optimizer = make(hvd_tf, kind, weight_decay=0.25)
    optimizer.build(owned)
    kept = [np.zeros(shape, np.float32) for shape in SHAPES]
    for turn, absent in enumerate((None, 1, 3, 0)):
        part = [i for i in range(len(SHAPES)) if i != absent]
        given, before = gradients(0, owned, turn), [plain(v) for v in owned]
        step = stepping(optimizer, [owned[i] for i in part], mode)
        step([given[i] for i in part])
        for i, variable in enumerate(owned):
            if i not in part:
                np.testing.assert_array_equal(plain(variable), before[i])
                continue
            signal, kept[i] = stepped(KINDS[kind], kept[i], given[i].numpy())
            decayed = before[i] * (1 - 0.5 * 0.25)
            moved = (decayed - plain(variable)) / 0.5
            verdict([signal], "coin").check(np.round(moved, 3))
            if kind != "SignSGD":
                np.testing.assert_array_equal(kept_by(optimizer, i), kept[i])
    assert int(optimizer.iterations) == 4


@pytest.mark.parametrize(
    ("kind", "scaled", "mode"),
    [
        ("SignSGD", False, "graph"),
        ("Signum", False, "graph"),
        ("Signum", True, "graph"),
        ("Lion", False, "eager"),
        ("Lion", True, "graph"),
    ],
)
def test_wrapped_it_votes_by_its_own_algorithm(hvd_tf, world, kind, scaled, mode):
    owned = variables(*SHAPES)
    schedule = KERAS.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    optimizer = make(hvd_tf, kind, schedule, weight_decay=0.25)
    if scaled:
        optimizer = KERAS.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=4.0)
    optimizer = hvd_tf.DistributedOptimizer(optimizer)
    step = stepping(optimizer, owned, mode)
    kept = [[np.zeros(shape, np.float32) for shape in SHAPES] for _ in range(world.size)]
    for turn in range(3):
        before, rate = [plain(v) for v in owned], 0.5**turn * 0.5
        factor = 4.0 if scaled and KERAS_3 else 1.0
        step([factor * g for g in gradients(world.rank, owned, turn)])
        for i, variable in enumerate(owned):
            signals = []
            for rank in range(world.size):
                gradient = gradients(rank, owned, turn)[i].numpy()
                signal, kept[rank][i] = stepped(KINDS[kind], kept[rank][i], gradient)
                signals.append(signal)
            moved = (before[i] * (1 - rate * 0.25) - plain(variable)) / rate
            verdict(signals, "coin").check(np.round(moved, 3))
    assert same_everywhere(world, *owned)


def test_what_is_asked_for_comes_first(hvd_tf, world):
    """A compressor, an algorithm or an option of a vote, before the optimizer's own."""
    for options, kind in (
        ({"op": hvd_tf.MajorityVote}, "lion"),
        ({"compression": hvd_tf.Compression.sign}, "sign"),
        ({"compression": hvd_tf.Compression.signum()}, "signum"),
        ({"op": hvd_tf.MajorityVote, "algorithm": "signum"}, "signum"),
        ({"algorithm": "sign", "ties": "zero"}, "sign"),
    ):
        owned = variables((300,))
        optimizer = hvd_tf.DistributedOptimizer(hvd_tf.Lion(0.5), **options)
        kept = [np.zeros(300, np.float32)] * world.size
        for turn in range(3):
            before = plain(owned[0])
            optimizer.apply_gradients([(gradients(world.rank, owned, turn)[0], owned[0])])
            given = [gradients(rank, owned, turn)[0].numpy() for rank in range(world.size)]
            pairs = [stepped(kind, k, g) for k, g in zip(kept, given, strict=True)]
            kept = [after for _, after in pairs]
            wanted = verdict([signal for signal, _ in pairs], options.get("ties", "coin"))
            wanted.check(np.round((before - plain(owned[0])) / 0.5, 3))


@ONLY_KERAS_3  # where our own runtime reduces
def test_with_an_operation_of_horovods_the_mean_is_stepped_on(hvd_tf, world):
    owned = variables((300,))
    before = plain(owned[0])
    optimizer = hvd_tf.Signum(0.5, ties="zero")
    optimizer = hvd_tf.DistributedOptimizer(optimizer, op=hvd_tf.Average)
    optimizer.apply_gradients([(gradients(world.rank, owned)[0], owned[0])])
    mean = sum(plain(gradients(rank, owned)[0]) for rank in range(world.size)) / world.size
    sure = np.abs(mean) > 1e-6
    moved = (before - plain(owned[0])) / 0.5
    np.testing.assert_allclose(moved[sure], np.sign(mean)[sure], rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_what_stays_a_ranks_own_is_decided_by_it(hvd_tf, world, mode):
    """A local variable steps by the sign of its own rank's momentum, whatever that is in size."""
    shared, local = owned = [tf.Variable([0.0]), tf.Variable([0.0])]
    optimizer = hvd_tf.DistributedOptimizer(hvd_tf.Signum(0.5, ties="zero"))
    optimizer.register_local_var(local)
    step = stepping(optimizer, owned, mode)
    own = 8.0 if world.rank else -8.0
    step([tf.constant([3.0]), tf.constant([own])])
    step([tf.constant([3.0]), tf.constant([own])])
    assert shared.numpy().tolist() == [-1.0]
    assert local.numpy().tolist() == [-np.sign(own)]


@pytest.mark.ranks(2)
@pytest.mark.parametrize("mode", MODES)
def test_a_rank_outside_of_the_process_set_decides_alone(hvd_tf, world, lone, mode):
    optimizer = hvd_tf.DistributedOptimizer(hvd_tf.Lion(0.5), process_set=lone[0])
    variable = tf.Variable([0.0, 0.0])
    stepping(optimizer, [variable], mode)([tf.constant([3.0, -0.25 - world.rank])])
    assert variable.numpy().tolist() == [-0.5, 0.5]


def test_keras_clips_before_the_momentum_and_averages_after_the_step(hvd_tf):
    """3 and 4 have the norm 5; the average is that of Keras' SGD which takes the same step."""
    variable, other = tf.Variable([0.0, 0.0]), tf.Variable([0.0, 0.0])
    average = {"use_ema": True, "ema_momentum": 0.5}
    optimizer = hvd_tf.Signum(0.5, beta=0.5, clipnorm=1.0, **average)
    plain_one = KERAS.optimizers.SGD(0.5, **average)
    for size in (1.0, 10.0):
        optimizer.apply_gradients([(tf.constant([3.0 * size, -4.0 * size]), variable)])
        plain_one.apply_gradients([(tf.constant([1.0, -1.0]), other)])
    np.testing.assert_allclose(kept_by(optimizer), [0.45, -0.6], rtol=1e-6)
    assert variable.numpy().tolist() == [-1.0, 1.0]
    for one, owned in ((optimizer, variable), (plain_one, other)):
        one.finalize_variable_values([owned])
    assert variable.numpy().tolist() == other.numpy().tolist()
    assert variable.numpy().tolist() != [-1.0, 1.0]


@ONLY_KERAS_3
def test_keras_accumulates_before_the_momentum(hvd_tf):
    variable = tf.Variable([0.0, 0.0])
    optimizer = hvd_tf.Signum(0.5, beta=0.5, gradient_accumulation_steps=2)
    step = stepping(optimizer, [variable], "graph")
    for first, second in (([1.0, 1.0], [3.0, -3.0]), ([-9.0, 1.0], [1.0, 1.0])):
        step([tf.constant(first)])
        step([tf.constant(second)])
    np.testing.assert_allclose(kept_by(optimizer), [-1.5, 0.25], rtol=1e-6)
    assert variable.numpy().tolist() == [0.0, 0.0]  # one step down and one up; one up and one down


def test_some_variables_do_not_decay(hvd_tf):
    weight, bias = tf.Variable([1.0], name="weight"), tf.Variable([1.0], name="bias")
    optimizer = hvd_tf.SignSGD(0.5, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply_gradients([(tf.ones(1), weight), (tf.ones(1), bias)])
    assert (float(weight[0]), float(bias[0])) == (0.25, 0.5)


def test_slices_are_added_up(hvd_tf):
    table = tf.Variable(tf.zeros((3, 64)))
    numbers = tf.concat([tf.ones((1, 64)), -3 * tf.ones((1, 64))], 0)
    slices = tf.IndexedSlices(numbers, tf.constant([1, 1]), tf.constant([3, 64]))
    hvd_tf.SignSGD(0.5).apply_gradients([(slices, table)])
    np.testing.assert_array_equal(table.numpy(), np.outer([0, 0.5, 0], np.ones(64)))


def test_weights_can_be_set(hvd_tf):
    """What the optimizer's variables hold is what the next step goes on from."""
    (variable,) = variables((300,))
    optimizer = hvd_tf.Signum(0.5)
    for turn in range(2):
        (momentum,) = [v for v in optimizer.variables if "momentum" in v.name] or [None]
        if momentum is not None:
            momentum.assign(np.full(300, 7.0))
        given = gradients(0, [variable], turn)[0]
        optimizer.apply_gradients([(given, variable)])
    wanted = stepped("signum", np.full(300, 7.0, np.float32), given.numpy())[1]
    np.testing.assert_array_equal(kept_by(optimizer), wanted)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "Signum",
            {"learning_rate": -1.0},
            "learning_rate: expected a finite number from 0, got -1",
        ),
        ("SignSGD", {"weight_decay": float("nan")}, "weight_decay: .* got nan"),
        ("Signum", {"beta": 1.0}, r"beta: expected a number in \[0, 1\), got 1.0"),
        ("Lion", {"beta_2": 2}, "beta2: .* got 2"),
        ("Signum", {"ties": "maybe"}, "ties: expected one of"),
        ("Signum", {"scale": "big"}, "scale: expected one of"),
    ],
)
def test_what_cannot_be_is_refused(hvd_tf, kind, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(hvd_tf, kind)(**options)


def test_replicas_and_xla_are_refused(hvd_tf, monkeypatch):
    variable = tf.Variable([0.0])
    optimizer = hvd_tf.Signum(0.5)
    optimizer.build([variable])
    with pytest.raises(RuntimeError, match="XLA cannot compile"):
        tf.function(stepping(optimizer, [variable], "eager"), jit_compile=True)([tf.ones(1)])
    two = tf.distribute.MirroredStrategy(["/cpu:0"])
    monkeypatch.setattr(type(two), "num_replicas_in_sync", 2)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: two)
    with pytest.raises(ValueError, match=r"Signum steps in one replica.* strategy of 2"):
        optimizer.decided([tf.ones(1)], [variable])
    assert variable.numpy().tolist() == [0.0]


def test_they_have_the_same_names_everywhere(hvd_tf):
    import hvd_sign.keras
    import hvd_sign.tensorflow.keras

    for kind in KINDS:
        for module in (hvd_sign.keras, hvd_sign.tensorflow.keras):
            assert getattr(module, kind) is getattr(hvd_tf, kind)
