"""Which exchange of gradients serves which variables: opened at first use, kept while they live."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from hvd_sign.buckets import TensorSpec, check_bucket_bytes, group_positions
from hvd_sign.calls import GRADIENTS, REDUCED, Opening
from hvd_sign.collectives import check_dtype
from hvd_sign.session import VoteSession
from hvd_sign.votes import make_rule
from hvd_sign_tf.gradients import GradientExchange, GradientSums, GradientVotes
from hvd_sign_tf.wish import Wish
from hvd_sign_tf.worlds import job, plain

Array = npt.NDArray[Any]
State = dict[str, Array]


class Exchanges:
    """The exchanges of one tape's or optimizer's wish."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self._open: dict[Any, GradientExchange] = {}
        self._sessions: list[VoteSession] = []
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
        return {f"{i}/{k}": a for i, state in self._states().items() for k, a in state.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Goes on from what ``state()`` returned; sessions that are not open yet will."""
        parts: dict[int, State] = {}
        for key, array in state.items():
            number, _, name = key.partition("/")
            parts.setdefault(int(number), {})[name] = array
        for position, part in parts.items():
            self._load(position, part)

    def steps(self) -> dict[int, int]:
        """How many steps each session has taken, those restored and not yet open included."""
        return {number: int(state["step"]) for number, state in self._states().items()}

    def set_steps(self, steps: Mapping[int, int]) -> None:
        """Counts on from another rank's steps."""
        states = self._states()
        for number, step in steps.items():
            self._load(number, states.get(number, {}) | {"step": np.array(step)})

    def _states(self) -> dict[int, State]:
        return dict(enumerate(session.state() for session in self._sessions)) | self._restored

    def _load(self, number: int, state: State) -> None:
        if number < len(self._sessions):
            self._sessions[number].load_state(state)
        else:
            self._restored[number] = state

    def exchange(
        self, gradients: Sequence[Any], variables: Sequence[Any]
    ) -> tuple[list[Any], tf.Tensor | None]:
        """What all ranks make of a step's gradients.

        Args:
            gradients: None where there is none on this rank; ``tf.IndexedSlices`` become dense if
                the wish says so, or if nothing is voted on.
            variables: theirs, in the same order on all ranks.

        Returns:
            One gradient a variable, and whether the step counts: bool[], or None if every step
            does. A vote gives one to each variable, zeros where no rank has any.

        Raises:
            ValueError: ranks differ in variables or options; on all ranks alike.
            TypeError: a gradient of a type that cannot be exchanged; a ValueError on other ranks.
        """
        # Sources that are no variables are known by their places and shapes.
        kept = [v for v in variables if hasattr(v, "assign")]
        # Votes abstain in what there is no gradient for; sums are of what there is.
        given = () if self.wish.votes else tuple(gradient is not None for gradient in gradients)
        unkept: Any = ()
        if len(kept) < len(variables):
            unkept = tuple((str(v.shape), v.dtype) for v in variables)
        key = (tuple(map(id, kept)), unkept, given)
        if any(exchange.closed for exchange in self._open.values()):  # by shutdown()
            self._open.clear()
            self._sessions.clear()
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = self._make(gradients, variables)
            for variable in kept:
                weakref.finalize(variable, self._open.pop, key, None)
        results, counts = found(self._dense(gradients, variables))
        return results, counts if self.conditional else None

    def _dense(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        dense = []
        for ordinal, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            if isinstance(gradient, tf.IndexedSlices):
                if self.wish.votes and not self.wish.sparse_as_dense:
                    raise TypeError(
                        f"variable {name_of(variable, ordinal)!r}: expected a dense gradient, got "
                        "tf.IndexedSlices; give sparse_as_dense=True"
                    )
                gradient = tf.convert_to_tensor(gradient)
            dense.append(gradient)
        return dense

    def _make(self, gradients: Sequence[Any], variables: Sequence[Any]) -> GradientExchange:
        wish = self.wish
        stream = job.adhoc(wish.process_set)
        # Whoever is refused tells the others, who would wait for it in the opening.
        with stream.refusing(Opening.kind, GRADIENTS):
            specs = make_specs(self._dense(gradients, variables), variables)
            if wish.options is None:
                reduction = plain.gradient_reduction(wish)
            else:
                for spec in specs:
                    check_dtype(f"variable {spec.name!r}", spec.dtype)
                check_bucket_bytes(wish.bucket_bytes)
                groups = group_positions(wish.groups, variables, VARIABLES, "tf.Variable")
        if wish.options is None:
            stream.open(GRADIENTS, method=REDUCED)
            present = [spec for spec in specs if gradients[spec.ordinal] is not None]
            return GradientSums(present, wish.passes, reduction())
        session = job.session(
            wish.process_set,
            specs,
            make_rule(wish.op),
            wish.options,
            bucket_bytes=wish.bucket_bytes,
            groups=groups,
        )
        self._resume(session)
        return GradientVotes(session, wish.passes, average=wish.average, poisons=wish.poisons)

    def _resume(self, session: VoteSession) -> None:
        """Lets a new session go on from a checkpoint, if any rank has read one."""
        restored = self._restored.pop(len(self._sessions), None)
        self._sessions.append(session)
        step = None if restored is None else int(restored["step"])
        everyones = session.stream.transport.gather_objects(step)
        steps = [taken for taken in everyones if taken is not None]
        if steps:  # a rank alone may have read it: its steps become everyone's
            session.load_state(session.state() | (restored or {}) | {"step": np.array(max(steps))})


VARIABLES: Any = (tf.Variable, *([tf.keras.Variable] if hasattr(tf.keras, "Variable") else []))


def name_of(variable: Any, ordinal: int) -> str:
    """A variable's path in its model, in Keras 3; else its name."""
    if not hasattr(variable, "assign"):
        return f"source {ordinal}"  # a tensor has other names in other graphs
    return str(getattr(variable, "path", None) or variable.name)


def make_specs(gradients: Sequence[Any], variables: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """The tensors of a session.

    Raises:
        ValueError: one of unknown shape.
    """
    specs = []
    for ordinal, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
        name = name_of(variable, ordinal)
        shape = tf.TensorShape(variable.shape)
        if not shape.is_fully_defined():
            raise ValueError(f"variable {name!r}: expected a known shape, got {shape}")
        dtype = tf.as_dtype((variable if gradient is None else gradient).dtype).name
        specs.append(TensorSpec(name, tuple(shape), dtype, ordinal))
    return tuple(specs)
