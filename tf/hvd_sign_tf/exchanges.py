"""Which exchange of gradients serves which variables: opened at first use, kept while they live."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from hvd_sign.asking import op_of, refuse_vote_options, vote_options
from hvd_sign.buckets import TensorSpec, group_positions
from hvd_sign.collectives import check_dtype
from hvd_sign.options import VoteOptions, positive_factor
from hvd_sign.session import BUCKET_BYTES, VoteSession
from hvd_sign.votes import is_vote_rule, make_rule
from hvd_sign_tf.gradients import GradientExchange, GradientSums, GradientVotes
from hvd_sign_tf.sign_compression import Compression
from hvd_sign_tf.worlds import job, plain

Array = npt.NDArray[Any]
State = dict[str, Array]


@dataclass(frozen=True)
class Wish:
    """What a user asks for with a tape or an optimizer; see ``DistributedOptimizer``.

    Attributes:
        op: a vote rule, or an operation of ``plain``.
        compression: a compressor.
        options: of a vote; None: nothing is voted on.
        process_set: the ranks that take part.
        sparse_as_dense: ``tf.IndexedSlices`` become dense.
        passes: gradients that are added up to one.
        average: that sum is divided by their number.
        bucket_bytes: of gradients that share messages.
        groups: of gradients that share messages, as Horovod has them.
        predivide: part of a mean's divisor that comes before the sum.
        poisons: a step that does not count is shown as Inf in all gradients.
    """

    op: Any
    compression: Any
    options: VoteOptions | None
    process_set: Any
    sparse_as_dense: bool = False
    passes: int = 1
    average: bool = False
    bucket_bytes: int | str = BUCKET_BYTES
    groups: Any = None
    predivide: float = 1.0
    poisons: bool = False

    def key(self) -> Any:
        """Equal for equal wishes."""
        groups = self.groups
        if isinstance(groups, (list, tuple)):
            groups = tuple(tuple(map(id, group)) for group in groups)
        named = replace(self, op=repr(self.op), compression=None, groups=None)
        return named, id(self.compression), groups

    @property
    def votes(self) -> bool:
        """Whether gradients are voted on."""
        return self.options is not None


def make_wish(
    compression: Any,
    op: Any,
    vote: dict[str, Any],
    *,
    process_set: Any,
    bucket_bytes: int | str | None = None,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    poisons: bool = False,
) -> Wish:
    """Checks arguments.

    Raises:
        ValueError: contradictory or unknown ones.
        TypeError: unknown keywords.
    """
    op = op_of(compression, op, Compression.none)
    options = None
    if is_vote_rule(op):
        if poisons and vote.setdefault("nonfinite", "skip") != "skip":
            raise ValueError(
                "nonfinite: a LossScaleOptimizer needs 'skip', so that it sees what was skipped"
            )
        options = vote_options(vote)
    else:
        refuse_vote_options(vote, bucket_bytes=bucket_bytes)
        op = plain.Average if op is None else op
    positive_factor("gradient_predivide_factor", gradient_predivide_factor)
    if backward_passes_per_step <= 0:
        raise ValueError("backward_passes_per_step must be > 0")
    return Wish(
        op,
        compression,
        options,
        process_set,
        sparse_as_dense,
        backward_passes_per_step,
        average_aggregated_gradients,
        BUCKET_BYTES if bucket_bytes is None else bucket_bytes,
        groups if groups is not None else (num_groups or None),
        gradient_predivide_factor,
        poisons,
    )


def name_of(variable: Any) -> str:
    """A variable's path in its model, in Keras 3; else its name."""
    return str(getattr(variable, "path", None) or getattr(variable, "name", "source"))


class Exchanges:
    """The exchanges of one tape's or optimizer's wish."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self._open: dict[Any, GradientExchange] = {}
        self._sessions: list[weakref.ref[VoteSession]] = []
        # States that were restored before their sessions were opened, by order of opening.
        self._restored: dict[int, State] = {}

    @property
    def conditional(self) -> bool:
        """Whether there are steps, or passes of a step, that are not applied."""
        options = self.wish.options
        skips = options is not None and options.nonfinite == "skip" and not self.wish.poisons
        return skips or self.wish.passes > 1

    @property
    def unscaled_verdicts(self) -> bool:
        """Whether verdicts are +-1 whatever the size of the gradients."""
        return self.wish.options is not None and self.wish.options.scale == "none"

    def state(self) -> dict[str, Array]:
        """What a checkpoint keeps of all sessions."""
        states = {i: s.state() for i, s in enumerate(self._alive())} | self._restored
        return {f"{i}/{k}": array for i, state in states.items() for k, array in state.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Goes on from what ``state()`` returned; sessions that are not open yet will."""
        parts: dict[int, State] = {}
        for key, array in state.items():
            number, _, name = key.partition("/")
            parts.setdefault(int(number), {})[name] = array
        sessions = self._alive()
        for session_number, part in parts.items():
            if session_number < len(sessions):
                sessions[session_number].load_state(part)
            else:
                self._restored[session_number] = part

    def steps(self) -> dict[int, int]:
        """How many steps each session has taken, those restored and not yet open included."""
        states = {i: s.state() for i, s in enumerate(self._alive())} | self._restored
        return {number: int(state["step"]) for number, state in states.items()}

    def set_steps(self, steps: Mapping[int, int]) -> None:
        """Counts on from another rank's steps."""
        sessions = self._alive()
        for number, step in steps.items():
            taken = {"step": np.array(step)}
            if number < len(sessions):
                sessions[number].load_state(sessions[number].state() | taken)
            else:
                self._restored[number] = self._restored.get(number, {}) | taken

    def _alive(self) -> list[VoteSession]:
        return [session for session in (made() for made in self._sessions) if session is not None]

    def exchange(
        self, gradients: Sequence[Any], variables: Sequence[Any]
    ) -> tuple[list[Any], tf.Tensor | None]:
        """What all ranks make of a step's gradients.

        Args:
            gradients: None where there is none on this rank; ``tf.IndexedSlices`` become dense if
                the wish says so.
            variables: theirs, in the same order on all ranks.

        Returns:
            One gradient a variable, None where no rank had one, and whether the step counts:
            bool[], or None if every step does.

        Raises:
            ValueError: ranks differ in variables or options; on all ranks alike.
            TypeError: a gradient of a type that cannot be exchanged.
        """
        dense = [self._dense(g, v) for g, v in zip(gradients, variables, strict=True)]
        exchange = self._find(dense, variables)
        # Who has no gradient for a variable that others have one for abstains, and takes theirs.
        results, counts = exchange(dense)
        return results, counts if self.conditional else None

    def _dense(self, gradient: Any, variable: Any) -> Any:
        if gradient is None or not isinstance(gradient, tf.IndexedSlices):
            return gradient
        if not self.wish.sparse_as_dense:
            raise TypeError(
                f"variable {name_of(variable)!r}: expected a dense gradient, got tf.IndexedSlices; "
                "give sparse_as_dense=True"
            )
        return tf.convert_to_tensor(gradient)

    def _find(self, gradients: Sequence[Any], variables: Sequence[Any]) -> GradientExchange:
        """The exchange for these variables, opened with the other ranks at its first use."""
        # Sources that are no variables are known by their places and shapes.
        kept = [v for v in variables if hasattr(v, "assign")]
        specs = _specs(gradients, variables)
        key = (tuple(map(id, kept)), specs if len(kept) < len(specs) else None)
        found = self._open.get(key)
        if found is None:
            found = self._make(gradients, variables, specs)
            self._open[key] = found
            for variable in kept:
                weakref.finalize(variable, self._open.pop, key, None)
        return found

    def _make(
        self, gradients: Sequence[Any], variables: Sequence[Any], specs: Sequence[TensorSpec]
    ) -> GradientExchange:
        wish = self.wish
        given = {i for i, gradient in enumerate(gradients) if gradient is not None}
        if wish.options is None:
            present = [spec for spec in specs if spec.ordinal in given]
            return GradientSums(present, wish.passes, plain.gradient_reduction(wish))
        for spec in specs:
            check_dtype(f"variable {spec.name!r}", spec.dtype)
        session = job.session(
            wish.process_set,
            specs,
            make_rule(wish.op),
            wish.options,
            bucket_bytes=wish.bucket_bytes,
            groups=group_positions(wish.groups, variables, object, "tf.Variable"),
        )
        number = len(self._sessions)
        self._sessions.append(weakref.ref(session))
        restored = self._restored.pop(number, None)
        everyones = session.stream.transport.gather_objects((given, restored and restored["step"]))
        # A rank alone may have read a checkpoint: its steps become everyone's.
        steps = [int(step) for _, step in everyones if step is not None]
        if steps:
            state = session.state() | (restored or {}) | {"step": np.array(max(steps))}
            session.load_state(state)
        return GradientVotes(
            session,
            set.union(*(theirs for theirs, _ in everyones)),
            wish.passes,
            average=wish.average,
            poisons=wish.poisons,
        )


def _specs(gradients: Sequence[Any], variables: Sequence[Any]) -> tuple[TensorSpec, ...]:
    specs = []
    for ordinal, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
        holder = variable if gradient is None else gradient
        dtype = tf.as_dtype(holder.dtype).name
        specs.append(TensorSpec(name_of(variable), tuple(variable.shape), dtype, ordinal))
    return tuple(specs)
