"""``DistributedOptimizer``: a Keras optimizer that steps on what all ranks decide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from hvd_sign.asking import op_of
from hvd_sign.votes import is_vote_rule
from hvd_sign_tf.exchanges import Exchanges
from hvd_sign_tf.meeting import meet_first
from hvd_sign_tf.sign_compression import Compression
from hvd_sign_tf.state import STATE_FILE, ExchangeState
from hvd_sign_tf.tape import scaled
from hvd_sign_tf.wish import make_wish
from hvd_sign_tf.worlds import job, plain

logger = logging.getLogger("hvd_sign")


class ExchangingOptimizer:
    """What a wrapped Keras optimizer gains; its class derives from one of ours and from its own.

    Attributes:
        exchange_state: what the exchange keeps from step to step; ``tf.train.Checkpoint`` finds it.
    """

    _hvd_sign: Exchanges
    exchange_state: ExchangeState
    iterations: Any

    @classmethod
    def from_config(cls, config: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """An optimizer as it was before it was wrapped."""
        wrapped: Any = cls.__bases__[1]
        return wrapped.from_config(config, *args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # The first thing that a LossScaleOptimizer does to what it wraps, in Keras 2 and 3.
        if name in ("_is_wrapped_by_loss_scale_optimizer", "loss_scale_factor"):
            raise ValueError(
                "optimizer: a LossScaleOptimizer around hvd.DistributedOptimizer would leave out "
                "this rank alone where its gradients overflow; wrap the other way round: "
                "hvd.DistributedOptimizer(LossScaleOptimizer(optimizer), ...)"
            )
        super().__setattr__(name, value)

    def _hvd_sign_step(
        self, gradients: list[Any], variables: list[Any], apply: Callable[[list[Any]], Any]
    ) -> None:
        """One pass: exchanges gradients, and applies what comes back if the step counts."""
        results, counts = self._hvd_sign.exchange(gradients, variables)
        if self._hvd_sign_scales():
            results = [scaled(result, self) for result in results]
        if counts is None:
            apply(results)
            return

        def step() -> tf.Tensor:
            apply(results)
            return tf.constant(True)

        def skip() -> tf.Tensor:
            self.iterations.assign_add(1)  # as Horovod counts the passes of a step
            return tf.constant(False)

        tf.cond(counts, step, skip)

    def _hvd_sign_scales(self) -> bool:
        return False

    def broadcast_exchange_state(self, root_rank: int) -> None:
        """Gives every rank the number of steps that one has taken, by which coins fall."""
        steps = plain.broadcast_object(self._hvd_sign.steps(), root_rank, name="hvd_sign.steps")
        self._hvd_sign.set_steps(steps)

    def save_assets(self, folder: str) -> None:
        """Keeps the exchange's state in a ``.keras`` file."""
        (Path(folder) / STATE_FILE).write_bytes(self.exchange_state.serialize())

    def load_assets(self, folder: str) -> None:
        """Takes the exchange's state from a ``.keras`` file."""
        file = Path(folder) / STATE_FILE
        if file.exists():
            self.exchange_state.deserialize(file.read_bytes())


class Keras2Optimizer(ExchangingOptimizer):
    """An optimizer of Keras 2, its legacy ones included."""

    @tf.autograph.experimental.do_not_convert
    def apply_gradients(self, grads_and_vars: Any, *args: Any, **kwargs: Any) -> Any:
        """Exchanges gradients, then applies them as the wrapped class does."""
        pairs = list(grads_and_vars)
        variables = [variable for _, variable in pairs]
        if self._hvd_sign.conditional:
            with tf.init_scope():  # a branch of the graph may make none
                self._hvd_sign_build(variables)

        def apply(results: list[Any]) -> None:
            combined = list(zip(results, variables, strict=True))
            super(Keras2Optimizer, self).apply_gradients(  # type: ignore[misc]
                combined, *args, **kwargs
            )

        self._hvd_sign_step([gradient for gradient, _ in pairs], variables, apply)
        return self.iterations

    def _hvd_sign_build(self, variables: list[Any]) -> None:
        if hasattr(self, "build"):
            self.build(variables)
        else:
            self._create_all_weights(variables)  # type: ignore[attr-defined]


class Keras3Optimizer(ExchangingOptimizer):
    """An optimizer of Keras 3."""

    @tf.autograph.experimental.do_not_convert
    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Exchanges gradients, then applies them as the wrapped class does."""
        wrapped: Any = super()
        gradients = list(grads)
        if trainable_variables is not None:
            variables = list(trainable_variables)
        else:
            variables = list(self._trainable_variables)  # type: ignore[attr-defined]
        if not self.built:  # type: ignore[has-type]
            wrapped.build(variables)
            self.built = True

        def apply(results: list[Any]) -> None:
            wrapped.apply(results, variables)

        self._hvd_sign_step(gradients, variables, apply)

    def _hvd_sign_scales(self) -> bool:
        # Keras 3 divides by the loss's scale after us, Keras 2 has done so before.
        return loss_scaling(self) and self._hvd_sign.unscaled_verdicts


def loss_scaling(optimizer: Any) -> bool:
    """Whether it is a LossScaleOptimizer."""
    return isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)


def _family(optimizer: Any) -> type[ExchangingOptimizer]:
    """How an optimizer is wrapped. Raises TypeError where nobody knows."""
    known = [tf.keras.optimizers.Optimizer]
    legacy: Any = getattr(tf.keras.optimizers, "legacy", None)
    if hasattr(legacy, "Optimizer"):
        known.append(legacy.Optimizer)
    if not isinstance(optimizer, tuple(known)):
        raise TypeError(
            "optimizer: expected a Keras optimizer, such as tf.keras.optimizers.SGD(), got "
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    return Keras3Optimizer if hasattr(optimizer, "apply") else Keras2Optimizer


def wrap(optimizer: Any, exchanges: Exchanges) -> Any:
    """Lets an optimizer exchange its gradients from now on: its class becomes one derived from it.

    So its slots, its step count and whoever refers to it stay what they are.
    """
    base = type(optimizer)
    # Under the wrapped class's own name, so that a saved model loads without hvd_sign.
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    optimizer.__class__ = type(base.__name__, (_family(optimizer), base), names)
    optimizer._hvd_sign = exchanges
    optimizer.exchange_state = ExchangeState(exchanges)
    return optimizer


def checked(optimizer: Any) -> Any:
    """An optimizer that can be wrapped; with a loss scaler where ``Model.compile`` would add one.

    Raises:
        TypeError: no Keras optimizer.
        ValueError: it is wrapped already, or adds up gradients itself.
    """
    _family(optimizer)
    if isinstance(optimizer, ExchangingOptimizer):
        raise ValueError("optimizer: hvd.DistributedOptimizer has wrapped it already")
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    passes = getattr(inner, "gradient_accumulation_steps", None)
    if passes:
        raise ValueError(
            "optimizer: gradient_accumulation_steps would add up what ranks have agreed on; "
            f"expected None, and hvd.DistributedOptimizer(..., backward_passes_per_step={passes})"
        )
    mixed = tf.keras.mixed_precision
    if mixed.global_policy().name == "mixed_float16" and not loss_scaling(optimizer):
        return mixed.LossScaleOptimizer(optimizer)
    return optimizer


def warn_of_norms(optimizer: Any) -> None:
    """Tells, on rank 0, that a vote leaves nothing to be clipped by its norm."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for name in ("clipnorm", "global_clipnorm"):
        if getattr(inner, name, None) is not None and job.rank() == 0:
            logger.warning(
                "%s=%g clips verdicts, whose norm is the root of their number, so that steps "
                "shrink by it; leave it out, or give scale='mean_abs'",
                name,
                getattr(inner, name),
            )


def DistributedOptimizer(  # noqa: N802, the name that Horovod's users know
    optimizer: Any,
    name: str | None = None,
    use_locking: bool = False,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    backward_passes_per_step: int = 1,
    op: Any = None,
    gradient_predivide_factor: float = 1.0,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = plain.global_process_set,
    scale_local_gradients: bool = True,
    *,
    bucket_bytes: int | str | None = None,
    **vote: Any,
) -> Any:
    """Horovod's ``DistributedOptimizer``, or one that votes on gradients.

    It votes if ``compression`` is ``hvd.Compression.sign`` or ``op`` is ``hvd.MajorityVote``: each
    rank sends the signs of its gradient, and the optimizer steps on the majority's verdict in
    {-1, 0, +1} (Bernstein et al. 2019, arXiv 1810.05291); a learning rate near 1e-4 fits SGD. The
    first step is collective over ``process_set``.

    Horovod's arguments mean what they mean there. In a vote ``groups`` says which gradients share
    messages, ``gradient_predivide_factor`` has no effect, and ``tf.IndexedSlices`` need
    ``sparse_as_dense=True``.

    A ``LossScaleOptimizer`` is wrapped as a whole, never the optimizer in it; under the global
    policy ``mixed_float16`` one is put around an optimizer that has none, as ``Model.compile``
    would. A step in which any rank met NaN or Inf is then shown to it on all ranks.

    A vote's own keywords; None takes the default:
        exchange: ``"sharded"`` (default), ``"allgather"``, ``"hierarchical"``: one vote a node,
            or ``"auto"``: for each bucket the cheapest by what ``hvd-sign bench-link`` measured,
            or else by a measurement of one or two seconds at the first step.
        local: ``"vote"`` (default) or ``"mean"``: what makes a node's vote if it has one.
        fallback: ``"allreduce"``: with ``exchange="auto"``, a dense fp32 allreduce in the place of
            votes that would take longer.
        ties: what decides zeros and ties: ``"coin"`` (default), ``"zero"``, ``"positive"``.
        seed: of the coins, default 0.
        scale: ``"none"`` (default) leaves +-1; ``"mean_abs"`` multiplies each tensor by the ranks'
            mean absolute gradient, so that a schedule made for SGD still fits.
        nonfinite: ``"abstain"`` (default): a rank that meets NaN or Inf abstains in that chunk of
            4096 coordinates; ``"skip"``: all ranks skip the step.
        algorithm: what is voted on: ``"sign"`` (default), the gradient itself.
        bucket_bytes: gradients that share messages, in bytes of fp32; default 25 MiB; ``"auto"``
            plans it from the same measurement.

    Returns:
        The optimizer itself, of a class derived from its own.

    Raises:
        ValueError: contradictory or unknown arguments; in the first step, on all ranks alike, ranks
            that differ in variables or options.
        TypeError: no Keras optimizer, or a gradient that is not fp32, fp64, fp16 or bf16.
        RuntimeError: in a step within XLA, or in a graph without an order.
    """
    common = {
        "compression": compression,
        "sparse_as_dense": sparse_as_dense,
        "backward_passes_per_step": backward_passes_per_step,
        "gradient_predivide_factor": gradient_predivide_factor,
        "average_aggregated_gradients": average_aggregated_gradients,
        "num_groups": num_groups,
        "groups": groups,
        "process_set": process_set,
    }
    votes = is_vote_rule(op_of(compression, op, Compression.none))
    ours = votes or job.runtime != "horovod"
    if ours:
        optimizer = checked(optimizer)
    poisons = votes and loss_scaling(optimizer)
    wish = make_wish(op=op, vote=vote, bucket_bytes=bucket_bytes, poisons=poisons, **common)
    if ours:
        exchanges = Exchanges(wish)
        if exchanges.unscaled_verdicts:
            warn_of_norms(optimizer)
        return wrap(optimizer, exchanges)
    reducing = plain.DistributedOptimizer(
        optimizer,
        name=name,
        use_locking=use_locking,
        device_dense=device_dense,
        device_sparse=device_sparse,
        op=wish.op,
        scale_local_gradients=scale_local_gradients,
        **common,
    )
    if hasattr(reducing, "_allreduce"):  # not in a graph of TensorFlow 1
        meet_first(reducing, "_allreduce", process_set)
    return reducing
