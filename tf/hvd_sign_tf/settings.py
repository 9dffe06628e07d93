"""What a user asks for with a tape or an optimizer, checked where it is said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hvd_sign.core.options import VoteOptions
from hvd_sign.core.training import TrainingOptions
from hvd_sign.frontend.arguments import gradient_settings, keywords_of, op_of
from hvd_sign.frontend.choice import Choice, make_choice
from hvd_sign.runtime.sessions import BUCKET_BYTES
from hvd_sign_tf.backend import backend, horovod_api
from hvd_sign_tf.sign_compression import Compression

EVERYTHING = make_choice(None, None)
"""The choice that leaves nothing out."""


@dataclass(frozen=True)
class ExchangeSettings:
    """What a user asks for with a tape or an optimizer; see ``DistributedOptimizer``.

    Attributes:
        op: a vote rule, or an operation of ``horovod_api``.
        compression: a compressor.
        options: of a vote; None: nothing is voted on.
        training: what else is done with gradients that are voted on.
        choice: which of them are; the others get the mean of the ranks' gradients.
        process_set: the ranks that take part.
        sparse_as_dense: ``tf.IndexedSlices`` become dense.
        passes: gradients that are added up to one.
        average: that sum is divided by their number.
        bucket_bytes: of gradients that share messages.
        groups: of gradients that share messages, as Horovod has them.
        predivide: part of a mean's divisor that comes before the sum.
        poisons: a step that does not count is shown as Inf in all gradients.
        scale_local: gradients of local variables are divided by the number of ranks.
    """

    op: Any
    compression: Any
    options: VoteOptions | None
    training: TrainingOptions
    choice: Choice
    process_set: Any
    sparse_as_dense: bool = False
    passes: int = 1
    average: bool = False
    bucket_bytes: int | str = BUCKET_BYTES
    groups: Any = None
    predivide: float = 1.0
    poisons: bool = False
    scale_local: bool = True

    def key(self) -> Any:
        """Equal for equal settings, whichever variables are chosen."""
        groups = self.groups
        if isinstance(groups, (list, tuple)):
            groups = tuple(tuple(map(id, group)) for group in groups)
        named = replace(self, op=repr(self.op), compression=None, groups=None, choice=EVERYTHING)
        # Of a vote the options say it all; a compressor of votes may be a new one in each step.
        return named, None if self.votes else id(self.compression), groups

    @property
    def votes(self) -> bool:
        """Whether gradients are voted on."""
        return self.options is not None


def make_settings(
    compression: Any,
    op: Any,
    vote: dict[str, Any],
    *,
    process_set: Any,
    bucket_bytes: int | str | None = None,
    vote_if: Any = None,
    min_size: Any = None,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    poisons: bool = False,
    scale_local_gradients: bool = True,
) -> ExchangeSettings:
    """Checks arguments.

    Raises:
        ValueError: contradictory or unknown ones.
        TypeError: unknown keywords, or a choice of variables that is none.
    """
    op = op_of(compression, op, Compression.none)
    chosen = gradient_settings(
        op,
        keywords_of(compression, vote),
        scaler="a LossScaleOptimizer" if poisons else None,
        bucket_bytes=bucket_bytes,
        vote_if=vote_if,
        min_size=min_size,
        passes=backward_passes_per_step,
        predivide=gradient_predivide_factor,
        num_groups=num_groups,
        groups=groups,
    )
    op = horovod_api.Average if op is None else op
    backend.members(process_set)
    return ExchangeSettings(
        op,
        compression,
        chosen.options,
        chosen.training,
        chosen.choice,
        process_set,
        sparse_as_dense,
        backward_passes_per_step,
        average_aggregated_gradients,
        chosen.bucket_bytes,
        chosen.groups,
        gradient_predivide_factor,
        poisons,
        scale_local_gradients,
    )
