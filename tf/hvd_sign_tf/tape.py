"""``DistributedGradientTape``: gradients come out of it as all ranks' verdict."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from hvd_sign_tf.bridge import check_context
from hvd_sign_tf.exchanges import Exchanges
from hvd_sign_tf.meeting import meet_first
from hvd_sign_tf.sign_compression import Compression
from hvd_sign_tf.wish import Wish, make_wish
from hvd_sign_tf.worlds import job, plain


class ExchangingTape(tf.GradientTape):
    """What was recorded by another tape, whose gradients all ranks decide together."""

    def __init__(self, tape: tf.GradientTape, exchanges: Exchanges, scaler: Any) -> None:
        self.__dict__.update(tape.__dict__)
        self._hvd_sign_exchanges = exchanges
        self._hvd_sign_scaler = scaler

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
        results, _ = self._hvd_sign_exchanges.exchange(gradients, variables)
        if self._hvd_sign_scaler is not None:
            results = [scaled(result, self._hvd_sign_scaler) for result in results]
        return tf.nest.pack_sequence_as(sources, results)


def scaled(verdict: Any, scaler: Any) -> Any:
    """A verdict with the scale that the gradients had, for a scaler that divides by it."""
    if verdict is None:
        return None
    scale = scaler.loss_scale if hasattr(scaler, "loss_scale") else scaler.dynamic_scale
    return verdict * tf.cast(tf.convert_to_tensor(scale), verdict.dtype)


_exchanges: dict[Any, Exchanges] = {}


def _shared(wish: Wish) -> Exchanges:
    """The exchanges of all tapes with the same wish: a program makes a tape at every step."""
    return _exchanges.setdefault(wish.key(), Exchanges(wish))


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
    process_set: Any = plain.global_process_set,
    scale_local_gradients: bool = True,
    *,
    bucket_bytes: int | str | None = None,
    loss_scale_optimizer: Any = None,
    **vote: Any,
) -> Any:
    """Horovod's ``DistributedGradientTape``, or one whose gradients are voted on.

    It votes if ``compression`` is ``hvd.Compression.sign`` or ``op`` is ``hvd.MajorityVote``:
    ``gradient()`` then returns the majority's verdict in {-1, 0, +1} on each coordinate (Bernstein
    et al. 2019, arXiv 1810.05291). Its first call for some variables is collective over
    ``process_set``, eagerly or while a ``tf.function`` is traced; later ones are votes.

    Horovod's arguments mean what they mean there. In a vote ``groups`` says which gradients share
    messages, ``gradient_predivide_factor`` has no effect, and ``tf.IndexedSlices`` need
    ``sparse_as_dense=True``.

    A vote's own keywords are those of ``DistributedOptimizer``, but for ``nonfinite="skip"``: as
    a tape steps on nothing, all gradients are then Inf on all ranks. And:
        loss_scale_optimizer: the ``LossScaleOptimizer`` of a mixed-precision loop. The verdict
            carries its scale, so that its unscaling gives the verdict back; ``nonfinite`` is then
            ``"skip"``, so that it skips the step on all ranks alike.

    Raises:
        ValueError: contradictory or unknown arguments; in ``gradient()``, on all ranks alike, ranks
            that differ in variables or options.
        TypeError: no tape, or a gradient that is not fp32, fp64, fp16 or bf16.
        RuntimeError: within XLA, or in a graph without an order.
    """
    if not isinstance(gradtape, tf.GradientTape):
        raise TypeError(f"gradtape: expected a tf.GradientTape, got {gradtape!r}")
    wish = make_wish(
        compression,
        op,
        vote,
        process_set=process_set,
        bucket_bytes=bucket_bytes,
        sparse_as_dense=sparse_as_dense,
        gradient_predivide_factor=gradient_predivide_factor,
        num_groups=num_groups,
        groups=groups,
        poisons=loss_scale_optimizer is not None or vote.get("nonfinite") == "skip",
    )
    if not wish.votes and job.runtime == "horovod":
        reducing = plain.DistributedGradientTape(
            gradtape,
            device_dense,
            device_sparse,
            compression,
            sparse_as_dense,
            wish.op,
            gradient_predivide_factor,
            num_groups,
            groups,
            process_set,
            scale_local_gradients,
        )
        meet_first(reducing, "_allreduce_grads", process_set, once=True)
        return reducing
    exchanges = _shared(wish)
    return ExchangingTape(
        gradtape, exchanges, loss_scale_optimizer if exchanges.unscaled_verdicts else None
    )
