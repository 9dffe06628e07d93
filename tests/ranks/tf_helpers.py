"""What the TensorFlow tests share: exact gradients, and the reference for tensors."""

from __future__ import annotations

from functools import partial
from typing import Any

import alike
import numpy as np
import reference
import tensorflow as tf

DTYPES = ("float16", "bfloat16", "float32", "float64")
SHAPES = ((64, 10), (10,), (), (5000,), (0, 3), (3, 4, 5))


def plain(tensor: Any) -> np.ndarray:
    """The values as float64, exact for every floating type."""
    return np.asarray(tf.cast(tensor, tf.float64))


def values(seed: int, *shape: int, dtype: Any = "float32") -> np.ndarray:
    """Normal values that depend on the seed alone, with some zeros."""
    generator = np.random.default_rng([7, seed])
    found = generator.normal(size=shape)
    found = np.where(generator.random(shape) < 0.1, 0.0, found)
    return found.astype(tf.as_dtype(dtype).as_numpy_dtype)


def expected(world: Any, tensor: Any, ties: str = "coin") -> reference.Expected:
    """The verdict of what every rank of ``world`` holds. Collective over it."""
    return reference.verdict(world.allgather(plain(tensor)), ties)


def variables(*shapes: tuple, dtype: str = "float32") -> list[tf.Variable]:
    """The same variables on every rank."""
    return [
        tf.Variable(values(i, *shape, dtype=dtype), name=f"layer{i}")
        for i, shape in enumerate(shapes)
    ]


def gradients(rank: int, owned: list, turn: int = 0) -> list[tf.Tensor]:
    """Other values on each rank and in each turn, in the variables' types."""
    return [
        tf.constant(values(1000 + 97 * turn + 11 * i + 7919 * rank, *v.shape, dtype=v.dtype))
        for i, v in enumerate(owned)
    ]


def recorded(owned: list, grads: list) -> tuple[tf.GradientTape, tf.Tensor]:
    """A tape, and a target whose gradients are exactly ``grads`` (None: it takes no part)."""
    with tf.GradientTape() as tape:
        terms = [
            tf.reduce_sum(tf.cast(v, tf.float64) * tf.cast(g, tf.float64))
            for v, g in zip(owned, grads, strict=True)
            if g is not None
        ]
        target = tf.add_n(terms)
    return tape, target


def same_everywhere(world: Any, *tensors: Any) -> bool:
    """Whether all ranks hold the same values, bit for bit."""
    mine = b"".join(plain(tensor).tobytes() for tensor in tensors)
    return len(set(world.allgather(mine))) == 1


refused_alike = partial(alike.refused_alike, kinds=(ValueError, TypeError, tf.errors.OpError))


BETAS = {"sign": (0.0, 0.0), "signum": (0.9, 0.9), "lion": (0.9, 0.99)}
"""Of the published algorithms: of the signal, and of the momentum that is kept."""


def stepped(kind: str, kept: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One rank's signal and its momentum after it, in fp32, each operation rounded."""
    of_signal, of_kept = (np.float32(beta) for beta in BETAS[kind])
    rest = [np.float32(1 - beta) for beta in BETAS[kind]]
    return of_signal * kept + rest[0] * gradient, of_kept * kept + rest[1] * gradient


def small_model(optimizer: Any, **options: Any) -> Any:
    """A compiled model of two layers, the same on every rank."""
    keras = tf.keras
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer=optimizer, loss="mse", jit_compile=False, **options)
    return model


def fit(model: Any, rank: int) -> list[np.ndarray]:
    """The weights after eight steps on a rank's own samples."""
    x, y = values(300 + rank, 32, 8), values(400 + rank, 32, 1)
    model.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0)
    return model.get_weights()


def assert_equal(some: list, others: list) -> None:
    """That arrays or variables are the same, bit for bit."""
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(plain(one), plain(other))


TRAINED = ((64, 10), (10,), (5000,), ())
"""The variables of a ``Stepper``."""
KERAS_3 = hasattr(tf.keras.optimizers.SGD, "apply")


class Stepper:
    """A wrapped SGD of rate 1 that begins each step at zero: what it steps on can be read."""

    def __init__(self, hvd_tf, mode="graph", optimizer=None, dtype="float32", **options):
        options = {"op": hvd_tf.MajorityVote, "ties": "zero", **options}
        optimizer = tf.keras.optimizers.SGD(1.0) if optimizer is None else optimizer
        self.owned = variables(*TRAINED, dtype=dtype)
        self.optimizer = hvd_tf.DistributedOptimizer(optimizer, **options)
        self._apply = tf.function(self._applied) if mode == "graph" else self._applied

    def _applied(self, given):
        self.optimizer.apply_gradients(list(zip(given, self.owned, strict=True)))

    def __call__(self, given: list) -> list[np.ndarray]:
        for variable in self.owned:
            variable.assign(tf.zeros_like(variable))
        self._apply(given)
        return [-plain(variable) for variable in self.owned]

    def state(self) -> dict[str, np.ndarray]:
        """Of the last session."""
        state = self.optimizer._hvd_sign.state()
        last = max(int(key.partition("/")[0]) for key in state)
        return {k.partition("/")[2]: a for k, a in state.items() if k.startswith(f"{last}/")}


def everyones(world: Any, owned: list, turn: int) -> list[list[np.ndarray]]:
    """All ranks' ``gradients()``."""
    return [[g.numpy() for g in gradients(rank, owned, turn)] for rank in range(world.size)]


def is_mean(given: list, place: int, got: np.ndarray) -> None:
    """That it is the mean of all ranks' gradients of a variable."""
    wanted = np.mean([np.float64(theirs[place]) for theirs in given], axis=0)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def loss_scaled(initial: float) -> Any:
    """A LossScaleOptimizer around an SGD of rate 1."""
    return tf.keras.mixed_precision.LossScaleOptimizer(
        tf.keras.optimizers.SGD(1.0), initial_scale=initial
    )


def carried(optimizer: Any, given: list) -> list:
    """Gradients as the optimizer takes them: Keras 3 divides by the scale itself."""
    factor = float(optimizer.dynamic_scale) if KERAS_3 else 1.0
    return [tf.constant(factor * g, tf.float32) for g in given]
