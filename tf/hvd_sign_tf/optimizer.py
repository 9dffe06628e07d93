"""``DistributedOptimizer``: a Keras optimizer that steps on what all ranks decide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from hvd_sign.frontend.sign_optimizers import keywords_for, op_for
from hvd_sign.votes import is_vote_rule
from hvd_sign_tf.backend import backend, horovod_api
from hvd_sign_tf.exchanges import Exchanges
from hvd_sign_tf.meeting import meet_first
from hvd_sign_tf.settings import make_settings
from hvd_sign_tf.sign_compression import Compression
from hvd_sign_tf.sign_optimizers import SignOptimizer
from hvd_sign_tf.wrapping import checked, inner_of, loss_scaling, wrap

logger = logging.getLogger("hvd_sign")


def warn_of_norms(optimizer: Any) -> None:
    """Tells, on rank 0, that a vote leaves nothing to be clipped by its norm."""
    inner = inner_of(optimizer)
    for name in ("clipnorm", "global_clipnorm"):
        if getattr(inner, name, None) is not None and backend.rank() == 0:
            logger.warning(
                "%s=%g clips verdicts, whose norm is the root of their number, so that steps "
                "shrink by it; leave it out, or give scale='mean_abs'. clip_norm= of "
                "hvd.DistributedOptimizer clips gradients before the vote",
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
    process_set: Any = horovod_api.global_process_set,
    scale_local_gradients: bool = True,
    *,
    bucket_bytes: int | str | None = None,
    vote_if: Callable[[str, Any], bool] | None = None,
    min_size: int | None = None,
    **vote: Any,
) -> Any:
    """Horovod's ``DistributedOptimizer``, or one that votes on gradients.

    It votes if ``compression`` is ``hvd.Compression.sign`` or its like, such as
    ``hvd.Compression.signum(0.9)``, if ``op`` is ``hvd.MajorityVote``, or if the optimizer is
    ``hvd.SignSGD``, ``hvd.Signum`` or ``hvd.Lion`` and neither is given: each rank sends the signs
    of its gradient, or of what an algorithm makes of it, and the optimizer steps on the majority's
    verdict in {-1, 0, +1} (Bernstein et al. 2019, arXiv 1810.05291); a learning rate near 1e-4 fits
    SGD. The first step is collective over ``process_set``.

    Horovod's arguments mean what they mean there. In a vote ``groups`` says which gradients share
    messages, ``gradient_predivide_factor`` has no effect, and ``tf.IndexedSlices`` need
    ``sparse_as_dense=True``.

    A ``LossScaleOptimizer`` is wrapped as a whole, never the optimizer in it; under the global
    policy ``mixed_float16`` one is put around an optimizer that has none, as ``Model.compile``
    would. A step in which any rank met NaN or Inf is then shown to it on all ranks. An algorithm
    that keeps something sees unscaled gradients: Keras 2 gives ``apply_gradients()`` those, and the
    scale of Keras 3's, ``loss_scale_factor`` included, is known.

    A vote's own keywords are those of ``hvd_sign.VoteOptions``, which documents them: ``exchange``,
    ``local``, ``fallback``, ``ties``, ``seed``, ``scale``, ``nonfinite``, ``algorithm``. In an
    optimizer ``algorithm`` sees the sum of a step's backward passes, or their mean with
    ``average_aggregated_gradients``; checkpoints have what it keeps. Those of
    ``hvd_sign.TrainingOptions``: ``warmup_steps``, ``clip_value``, ``clip_norm``, ``check_every``,
    where ranks compare the variables that they step on together, the learning rate and the
    optimizer's other options. And:
        bucket_bytes: gradients that share messages, in bytes of fp32; default 25 MiB; ``"auto"``
            plans it from the same measurement.
        vote_if: a function of a variable's name, in Keras 3 its path, and the variable; True: it is
            voted on. The others, and those below ``min_size``, go dense: their gradients become
            the mean of all ranks', as with ``hvd.Average``, on which any optimizer steps by its own
            algorithm, ``hvd.SignSGD`` and its like too. They share buckets of their own, and
            ``bucket_bytes``. Ranks choose alike.
        min_size: coordinates that a variable must have to be voted on; default 0.

    Returns:
        The optimizer itself, of a class derived from its own.

    Raises:
        ValueError: contradictory or unknown arguments; in the first step, on all ranks alike, ranks
            that differ in variables or options.
        TypeError: no Keras optimizer, a gradient that is not fp32, fp64, fp16 or bf16, or a choice
            of variables that says neither True nor False.
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
        "scale_local_gradients": scale_local_gradients,
    }
    inner = inner_of(optimizer)
    of_signs = inner if isinstance(inner, SignOptimizer) else None
    op = op_for(of_signs, compression, op, Compression.none)
    votes = is_vote_rule(op)
    if votes:
        vote, _ = keywords_for(of_signs, compression, Compression.none, vote)
    ours = votes or backend.runtime != "horovod"
    if ours:
        optimizer = checked(optimizer)
    poisons = votes and loss_scaling(optimizer)
    settings = make_settings(
        op=op,
        vote=vote,
        bucket_bytes=bucket_bytes,
        vote_if=vote_if,
        min_size=min_size,
        poisons=poisons,
        **common,
    )
    if ours:
        exchanges = Exchanges(settings)
        if settings.options is not None and settings.options.scale == "none":
            warn_of_norms(optimizer)
        return wrap(optimizer, exchanges)
    reducing = horovod_api.DistributedOptimizer(
        optimizer,
        name=name,
        use_locking=use_locking,
        device_dense=device_dense,
        device_sparse=device_sparse,
        op=settings.op,
        **common,
    )
    if hasattr(reducing, "_allreduce"):  # not in a graph of TensorFlow 1
        meet_first(reducing, "_allreduce", process_set)
    return reducing
