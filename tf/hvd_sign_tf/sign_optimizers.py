"""``SignSGD``, ``Signum`` and ``Lion``: optimizers whose steps have the size of the learning rate.

Wrapped by ``hvd.DistributedOptimizer`` they vote, each rank by its own algorithm. By themselves,
in one process, they compute what a world of one would, bit for bit, and need no MPI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hvd_sign import algorithms
from hvd_sign.algorithms import VERDICT_RESIDUAL, Algorithm
from hvd_sign.core.buckets import check_dtype
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.training import TrainingOptions
from hvd_sign.frontend.sign_optimizers import OPTIONS, check_rate
from hvd_sign_tf.arithmetic import densified
from hvd_sign_tf.bridge import legal
from hvd_sign_tf.exchanges import make_specs
from hvd_sign_tf.keras_optimizers import KerasOptimizer
from hvd_sign_tf.lone_votes import LoneVotes

registered = tf.keras.utils.register_keras_serializable("hvd_sign")


class SignOptimizer(KerasOptimizer):
    """Steps by p = p - lr (V + weight_decay p), where V are the signs of an algorithm's signal.

    What the algorithm keeps stands in the optimizer's variables: fp32, or fp64 for fp64. A wrapped
    one leaves these as they are, for then the votes keep it.

    Args:
        algorithm: chooses the signal.
        learning_rate, weight_decay, name: as of any Keras optimizer.
        config: the other arguments that ``get_config()`` returns: ``ties``, ``seed`` and ``scale``
            among them.
        base: other arguments of Keras' ``Optimizer``.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        learning_rate: Any,
        weight_decay: float | None,
        name: str | None,
        config: dict[str, Any],
        base: dict[str, Any],
    ) -> None:
        for argument, rate in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
            if isinstance(rate, (int, float)):  # and not a schedule
                check_rate(argument, rate)
        super().__init__(learning_rate, name, weight_decay=weight_decay, **base)
        self._algorithm = algorithm
        self._own_config = config
        self._voted_on: Callable[[Any], bool] = lambda variable: False
        self._voted: Callable[[], tf.Tensor | None] = lambda: None
        self._wrapped = False
        self._options = VoteOptions(**self.vote_keywords())

    def vote_keywords(self) -> dict[str, Any]:
        """By which keywords of ``hvd_sign.VoteOptions`` a vote does what this optimizer does."""
        options = {name: self._own_config[name] for name in OPTIONS}
        return {"algorithm": self._algorithm, **options}

    def training_keywords(self) -> dict[str, Any]:
        """By which keywords of ``hvd_sign.TrainingOptions`` it does."""
        return {}

    def take_verdicts(
        self, voted_on: Callable[[Any], bool], voted: Callable[[], tf.Tensor | None]
    ) -> None:
        """Takes gradients for what ranks have decided, from now on.

        Args:
            voted_on: whether that is so of a variable's; what is not, this process decides alone.
            voted: whether it is so of any in this step: bool[]; None: it is.
        """
        self._voted_on, self._voted, self._wrapped = voted_on, voted, True

    @property
    def _planes(self) -> tuple[str, ...]:
        """All that is kept of a variable in votes alone."""
        averages = (VERDICT_RESIDUAL,) if self._algorithm.averages else ()
        return (*self._algorithm.keeps, *averages)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), **self._own_config}

    def begin(self, variables: Sequence[Any]) -> None:
        """Makes the optimizer's variables: one for each plane of the algorithm and variable.

        Raises:
            TypeError: a variable that is not fp32, fp64, fp16 or bf16.
        """
        specs = make_specs([None] * len(variables), variables)
        for spec in specs:
            check_dtype(f"variable {spec.name!r}", spec.dtype)
        self._lone = LoneVotes(specs, self._options, TrainingOptions(**self.training_keywords()))
        with tf.device("/cpu:0"):  # where votes are held
            self._kept = {
                f"{plane}/{spec.ordinal}": self.add_variable(
                    spec.shape,
                    dtype="float64" if spec.dtype == "float64" else "float32",
                    name=legal(f"{spec.name}_{plane}"),
                )
                for spec in specs
                for plane in self._planes
            }

    def decided(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Verdicts: the gradients themselves where ranks have voted, else this process's own.

        Raises:
            ValueError: ``tf.distribute`` has several replicas.
            RuntimeError: within XLA, or in a graph without an order.
        """
        own = [place for place, v in enumerate(variables) if not self._voted_on(v)]
        voted = self._voted()
        if voted is None:
            return self._decided(gradients, variables, own)
        typed = [
            tf.cast(densified(gradient), variable.dtype)
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        decided: list[Any] = tf.cond(
            voted,
            lambda: self._decided(typed, variables, own),
            lambda: self._decided(typed, variables, range(len(variables))),
        )
        return decided

    def _decided(
        self, gradients: Sequence[Any], variables: Sequence[Any], own: Sequence[int]
    ) -> list[Any]:
        decided = list(gradients)
        if own:
            alone = self._decided_alone([gradients[i] for i in own], [variables[i] for i in own])
            for place, verdict in zip(own, alone, strict=True):
                decided[place] = verdict
        return decided

    def _decided_alone(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[tf.Tensor]:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                f"optimizer: {type(self).__name__} steps in one replica, or by the votes of ranks "
                f"under hvd.DistributedOptimizer, got a tf.distribute strategy of {replicas}"
            )
        given = {
            self.position(variable): tf.cast(densified(gradient), variable.dtype)
            for gradient, variable in zip(gradients, variables, strict=True)
        }
        names = [f"{plane}/{ordinal}" for ordinal in given for plane in self._planes]
        kept = {name: tf.convert_to_tensor(self._kept[name]) for name in names}
        verdicts, now = self._lone(tf.convert_to_tensor(self.iterations), given, kept)
        for name, value in zip(names, now, strict=True):
            self._kept[name].assign(value)
        return verdicts


@registered
class SignSGD(SignOptimizer):
    """signSGD: steps by the sign of the gradient (Bernstein et al. 2018, arXiv 1802.04434).

    Args:
        learning_rate: what each coordinate moves in a step: a number or a schedule.
        weight_decay: decoupled: p = p - lr (V + weight_decay p).
        ties: what decides a coordinate without a sign; as of ``hvd_sign.VoteOptions``.
        seed: of coins; see there.
        scale: see there.
        name: the optimizer's.
        base: other arguments of ``keras.optimizers.Optimizer``, such as ``use_ema``. Gradients are
            clipped before the sign is taken; in a wrapped optimizer verdicts are.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        weight_decay: float | None = None,
        *,
        ties: str = "coin",
        seed: int = 0,
        scale: str = "none",
        name: str | None = None,
        **base: Any,
    ) -> None:
        config = {"ties": ties, "seed": seed, "scale": scale}
        super().__init__(algorithms.Sign(), learning_rate, weight_decay, name, config, base)


@registered
class Signum(SignOptimizer):
    """Signum: steps by the sign of the momentum (Bernstein et al. 2019, arXiv 1810.05291).

    v = beta v + (1 - beta) g; V = sign(v), or the ranks' vote on it; p = p - lr (V + weight_decay
    p). A learning rate that suits SGD with momentum is 100 times too large.

    Args:
        learning_rate: what each coordinate moves in a step: a number or a schedule.
        beta: in [0, 1).
        weight_decay: decoupled, as AdamW's.
        ties, seed, scale, name, base: as of ``SignSGD``.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        beta: float = 0.9,
        weight_decay: float | None = None,
        *,
        ties: str = "coin",
        seed: int = 0,
        scale: str = "none",
        name: str | None = None,
        **base: Any,
    ) -> None:
        config = {"beta": beta, "ties": ties, "seed": seed, "scale": scale}
        super().__init__(algorithms.Signum(beta), learning_rate, weight_decay, name, config, base)


@registered
class Lion(SignOptimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675), by vote as Liu et al. 2024, arXiv 2404.00438.

    V = sign(beta_1 m + (1 - beta_1) g), or the ranks' vote on it; m = beta_2 m + (1 - beta_2) g;
    p = p - lr (V + weight_decay p). Keras' own ``Lion`` lets a coordinate whose signal is zero
    stay; so does this one with ``ties="zero"``.

    Args:
        learning_rate: what each coordinate moves in a step: a number or a schedule; a third to a
            tenth of AdamW's suits.
        beta_1: in [0, 1).
        beta_2: in [0, 1).
        weight_decay: decoupled; three to ten times AdamW's suits.
        ties, seed, scale, name, base: as of ``SignSGD``.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        weight_decay: float | None = None,
        *,
        ties: str = "coin",
        seed: int = 0,
        scale: str = "none",
        name: str | None = None,
        **base: Any,
    ) -> None:
        config = {"beta_1": beta_1, "beta_2": beta_2, "ties": ties, "seed": seed, "scale": scale}
        algorithm = algorithms.Lion(beta_1, beta_2)
        super().__init__(algorithm, learning_rate, weight_decay, name, config, base)
