"""``DistributedGradientTape``: gradients come out of it as all ranks' verdict."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import tensorflow as tf

from hvd_sign.frontend.choice import Choice
from hvd_sign_tf.backend import backend, horovod_api
from hvd_sign_tf.bridge import check_context
from hvd_sign_tf.exchanges import Exchanges
from hvd_sign_tf.local import LocalVariables, variables_of
from hvd_sign_tf.meeting import meet_first
from hvd_sign_tf.settings import ExchangeSettings, make_settings
from hvd_sign_tf.sign_compression import Compression

logger = logging.getLogger("hvd_sign")


class ExchangingTape(tf.GradientTape):
    """What was recorded by another tape, whose gradients all ranks decide together."""

    def __init__(
        self, tape: tf.GradientTape, exchanges: Exchanges, choice: Choice, scaler: Any
    ) -> None:
        self.__dict__.update(tape.__dict__)
        self._hvd_sign_exchanges = exchanges
        self._hvd_sign_choice = choice
        self._hvd_sign_scaler = scaler
        self._hvd_sign_local = LocalVariables()

    def register_local_source(self, source: Any) -> None:
        """Keeps a source's gradient to this rank, divided by their number as is asked for."""
        self._hvd_sign_local.register(source)

    def jacobian(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: a vote on each row is nothing that anybody wants.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "jacobian: ranks exchange gradients alone; take it from the tape itself, before "
            "hvd.DistributedGradientTape wraps it"
        )

    batch_jacobian = jacobian

    @tf.autograph.experimental.do_not_convert
    def gradient(self, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
        """``tf.GradientTape.gradient``, decided by all ranks.

        A vote gives zeros to a variable for which no rank has a gradient.
        """
        check_context("DistributedGradientTape")
        own = super().gradient(target, sources, *args, **kwargs)
        variables = tf.nest.flatten(sources)
        gradients = tf.nest.flatten(own, expand_composites=False)
        outcome = self._hvd_sign_exchanges.exchange(
            gradients,
            variables,
            self._hvd_sign_local,
            self._hvd_sign_scaler,
            choice=self._hvd_sign_choice,
        )
        return tf.nest.pack_sequence_as(sources, outcome.gradients)

    def get_local_and_global_gradients(
        self, target: Any, sources: Any, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], list[Any]]:
        """``gradient()`` as pairs (source, gradient), those of local sources apart and first."""
        variables = tf.nest.flatten(sources)
        pairs = list(zip(variables, self.gradient(target, variables, *args, **kwargs), strict=True))
        local = [pair for pair in pairs if pair[0] in self._hvd_sign_local]
        return local, [pair for pair in pairs if pair[0] not in self._hvd_sign_local]


_exchanges: dict[Any, Exchanges] = {}


def _shared(settings: ExchangeSettings) -> Exchanges:
    """The exchanges of all tapes with the same settings: a program makes a tape at every step."""
    return _exchanges.setdefault(settings.key(), Exchanges(settings))


def DistributedGradientTape(  # noqa: N802, the name that Horovod's users know
    gradtape: tf.GradientTape,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    op: Any = None,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = horovod_api.global_process_set,
    scale_local_gradients: bool = True,
    *,
    bucket_bytes: int | str | None = None,
    loss_scale_optimizer: Any = None,
    vote_if: Callable[[str, Any], bool] | None = None,
    min_size: int | None = None,
    **vote: Any,
) -> Any:
    """Horovod's ``DistributedGradientTape``, or one whose gradients are voted on.

    It votes if ``compression`` is ``hvd.Compression.sign`` or its like, such as
    ``hvd.Compression.signum()``, or if ``op`` is ``hvd.MajorityVote``: ``gradient()`` then returns
    the majority's verdict in {-1, 0, +1} on each coordinate (Bernstein et al. 2019, arXiv
    1810.05291). Its first call for some variables is collective over ``process_set``, eagerly or
    while a ``tf.function`` is traced; later ones are votes.

    Horovod's arguments mean what they mean there. In a vote ``groups`` says which gradients share
    messages, ``gradient_predivide_factor`` has no effect, and ``tf.IndexedSlices`` need
    ``sparse_as_dense=True``.

    A vote's own keywords are those of ``DistributedOptimizer``, but for ``nonfinite="skip"``: as
    a tape steps on nothing, all gradients are then Inf on all ranks; and with ``check_every`` it is
    the variables alone that ranks compare. And:
        loss_scale_optimizer: the ``LossScaleOptimizer`` of a mixed-precision loop. The verdict
            carries its scale, so that its unscaling gives the verdict back; ``nonfinite`` is then
            ``"skip"``, so that it skips the step on all ranks alike. An algorithm that keeps
            something sees unscaled gradients; of a scale that the tape is not told it knows
            nothing, and keeps arrays of gradients as they come.

    Raises:
        ValueError: contradictory or unknown arguments; in ``gradient()``, on all ranks alike, ranks
            that differ in variables or options.
        TypeError: no tape, a gradient that is not fp32, fp64, fp16 or bf16, or a choice of
            variables that says neither True nor False.
        RuntimeError: within XLA, or in a graph without an order.
    """
    if not isinstance(gradtape, tf.GradientTape):
        raise TypeError(f"gradtape: expected a tf.GradientTape, got {gradtape!r}")
    settings = make_settings(
        compression,
        op,
        vote,
        process_set=process_set,
        bucket_bytes=bucket_bytes,
        vote_if=vote_if,
        min_size=min_size,
        sparse_as_dense=sparse_as_dense,
        gradient_predivide_factor=gradient_predivide_factor,
        num_groups=num_groups,
        groups=groups,
        poisons=loss_scale_optimizer is not None or vote.get("nonfinite") == "skip",
        scale_local_gradients=scale_local_gradients,
    )
    if not settings.votes and backend.runtime == "horovod":
        reducing = horovod_api.DistributedGradientTape(
            gradtape,
            device_dense,
            device_sparse,
            compression,
            sparse_as_dense,
            settings.op,
            gradient_predivide_factor,
            num_groups,
            groups,
            process_set,
            scale_local_gradients,
        )
        meet_first(reducing, "_allreduce_grads", process_set, once=True)
        return reducing
    exchanges = _shared(settings)
    mixed = tf.keras.mixed_precision.global_policy().name == "mixed_float16"
    seen = settings.poisons and not exchanges.free_of_loss_scale
    if settings.votes and mixed and loss_scale_optimizer is None and not seen:
        _warn_of_scaling()
    return ExchangingTape(gradtape, exchanges, settings.choice, loss_scale_optimizer)


@cache
def _warn_of_scaling() -> None:
    """Tells, once and on rank 0, that a loss scaler which the tape does not know goes wrong."""
    if backend.rank() == 0:
        logger.warning(
            "hvd.DistributedGradientTape votes under the policy mixed_float16, whose "
            "LossScaleOptimizer divides verdicts by the loss's scale and does not see which steps "
            "overflow; give loss_scale_optimizer=optimizer"
        )


def PartialDistributedGradientTape(  # noqa: N802, the name that Horovod's users know
    gradtape: tf.GradientTape,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    op: Any = None,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = horovod_api.global_process_set,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
    **vote: Any,
) -> Any:
    """A ``DistributedGradientTape`` that keeps the gradients of some layers to each rank.

    Its other arguments, a vote's own included, are those of ``DistributedGradientTape``.

    Args:
        local_layers: one layer of Keras or several, whose trainable variables are local.
        scale_local_gradients: their gradients are divided by the number of ranks.

    Raises:
        ValueError: as ``DistributedGradientTape``; or what are no layers.
    """
    local = variables_of(local_layers)
    tape = DistributedGradientTape(
        gradtape,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        op,
        gradient_predivide_factor,
        num_groups,
        groups,
        process_set,
        scale_local_gradients,
        **vote,
    )
    for variable in local:
        tape.register_local_source(variable)
    return tape
