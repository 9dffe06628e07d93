"""``OneBitAdam``: Adam whose momentum travels at 1 bit a coordinate once its variance is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hvd_sign import algorithms
from hvd_sign_tf.arithmetic import densified
from hvd_sign_tf.sign_optimizers import SignOptimizer, registered


@registered
class OneBitAdam(SignOptimizer):
    """1-bit Adam (Tang et al. 2021, arXiv 2102.02888).

    In the first ``warmup_steps`` steps it is Keras' ``AdamW``, on the mean of the ranks' gradients,
    and each rank keeps a momentum m = beta_1 m + (1 - beta_1) g of its own gradients too. Then the
    variance stays as it is, and the steps are AdamW's with the ranks' mean momentum in the place of
    Adam's, as ``hvd_sign.algorithms.OneBit`` tells it: by signs, with error feedback on both sides.
    What that leaves unsaid does not go through the momentum again, as it does in the paper, which
    keeps one for all ranks.

    No coordinate moves further than by the learning rate then, as Adam's seldom do. The paper does
    not clip, but all coordinates of a chunk are told as equally large, and those whose gradients
    are far smaller than others' would be thrown far away. Coordinates that have had no gradient in
    the warm-up have no variance, and stay where they are. Variables that are not voted on go on by
    Adam.

    Args:
        learning_rate: as Adam's: a number or a schedule.
        beta_1: of the momentum, in [0, 1).
        beta_2: of the variance, in [0, 1).
        epsilon: added to the root of the variance, as Keras adds it.
        weight_decay: decoupled, as AdamW's.
        warmup_steps: until the variance is known well: a tenth to a quarter of all steps, where
            the learning rate rises and for some time after.
        ties, seed, name, base: as of ``SignSGD``.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        warmup_steps: int = 1000,
        *,
        ties: str = "coin",
        seed: int = 0,
        name: str | None = None,
        **base: Any,
    ) -> None:
        if not 0 < float(epsilon) < math.inf:
            raise ValueError(f"epsilon: expected a finite number above zero, got {epsilon!r}")
        if not 0 <= beta_2 < 1:
            raise ValueError(f"beta_2: expected a number in [0, 1), got {beta_2!r}")
        if not isinstance(warmup_steps, int) or isinstance(warmup_steps, bool) or warmup_steps < 1:
            raise ValueError(
                f"warmup_steps: expected a whole number of steps from 1, got {warmup_steps!r}"
            )
        config = {
            "beta_1": beta_1,
            "beta_2": beta_2,
            "epsilon": epsilon,
            "warmup_steps": warmup_steps,
            "ties": ties,
            "seed": seed,
        }
        algorithm = algorithms.OneBit(beta_1)
        super().__init__(algorithm, learning_rate, weight_decay, name, config, base)

    def vote_keywords(self) -> dict[str, Any]:
        """Of ``hvd_sign.VoteOptions``: of means, whose scale is no choice."""
        options = {name: self._own_config[name] for name in ("ties", "seed")}
        return {"algorithm": self._algorithm, "scale": "mean_abs", **options}

    def training_keywords(self) -> dict[str, Any]:
        """The warm-up."""
        return {"warmup_steps": self._own_config["warmup_steps"]}

    def begin(self, variables: Sequence[Any]) -> None:
        """Makes Adam's variables too.

        Raises:
            TypeError: a variable that is not fp32, fp64, fp16 or bf16.
        """
        super().begin(variables)

        def like(kind: str) -> list[Any]:
            return [
                self.add_variable(
                    kept.shape, dtype=kept.dtype, name=kept.name.split(":")[0] + f"_{kind}"
                )
                for name, kept in self._kept.items()
                if name.startswith("momentum/")
            ]

        with tf.device("/cpu:0"):
            self._means, self._variances = like("mean"), like("variance")
            self._adams_steps = self.add_variable((), dtype="int64", name="adams_steps")

    def decided(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """What Adam steps by, or the mean momentum over the root of the variance.

        Raises:
            ValueError: ``tf.distribute`` has several replicas.
            RuntimeError: within XLA, or in a graph without an order.
        """
        given = [densified(gradient) for gradient in gradients]
        told = list(given)
        dense: Any = [True] * len(given)  # whether Adam goes on
        steps = tf.convert_to_tensor(self._adams_steps)
        if not self._wrapped:
            told = self._decided_alone(given, variables)
            warming_up = tf.cast(self.iterations, tf.int64) < self._own_config["warmup_steps"]
            dense = [warming_up] * len(given)
        else:
            voted = self._voted()
            assert voted is not None  # there is a warm-up
            warming_up = tf.logical_not(voted)
            dense = [warming_up if self._voted_on(v) else True for v in variables]
        self._adams_steps.assign(steps + tf.cast(tf.reshape(warming_up, ()), tf.int64))
        rows = zip(given, told, dense, variables, strict=True)
        return [self._direction(*row) for row in rows]

    def _direction(self, gradient: Any, told: Any, dense: Any, variable: Any) -> tf.Tensor:
        place = self.position(variable)
        mean, variance = self._means[place], self._variances[place]
        kind = variance.dtype
        beta_1, beta_2, epsilon = (
            tf.cast(self._own_config[name], kind) for name in ("beta_1", "beta_2", "epsilon")
        )
        step = tf.cast(self.iterations, kind) + 1

        def by_adam() -> tf.Tensor:
            g = tf.cast(gradient, kind)
            mean.assign(mean + (g - mean) * (1 - beta_1))
            variance.assign(variance + (g * g - variance) * (1 - beta_2))
            factor = tf.sqrt(1 - beta_2**step) / (1 - beta_1**step)
            return factor * mean / (tf.sqrt(variance) + epsilon)

        def by_telling() -> tf.Tensor:
            known = tf.cast(self._adams_steps, kind)
            factor = tf.sqrt(1 - beta_2**known) / (1 - beta_1**step)
            fixed = tf.convert_to_tensor(variance)
            moved = factor * tf.cast(told, kind) / (tf.sqrt(fixed) + epsilon)
            moved = tf.clip_by_value(moved, -1, 1)
            return tf.where(fixed > 0, moved, tf.zeros_like(moved))

        chosen = by_adam() if dense is True else tf.cond(dense, by_adam, by_telling)
        return tf.cast(chosen, variable.dtype)
