"""Which exchange of gradients serves which variables: opened at first use, kept while they live."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from hvd_sign.buckets import TensorSpec, check_bucket_bytes, group_positions
from hvd_sign.calls import GRADIENTS, REDUCED, Opening
from hvd_sign.collectives import check_dtype
from hvd_sign.session import VoteSession
from hvd_sign.votes import make_rule
from hvd_sign_tf.arithmetic import densified, divided, scaled
from hvd_sign_tf.errors import told_as_horovod
from hvd_sign_tf.gradients import GradientExchange, GradientSums, GradientVotes
from hvd_sign_tf.wish import Wish
from hvd_sign_tf.worlds import job, plain

Array = npt.NDArray[Any]
State = dict[str, Array]
Outcome = tuple[list[Any], tf.Tensor | None]
"""Gradients, and whether their step counts; None: as every step."""


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
    def included(self) -> bool:
        """Whether this rank is in the process set."""
        return job.rank() in job.members(self.wish.process_set)

    @property
    def unscaled_verdicts(self) -> bool:
        """Whether verdicts are +-1 whatever the size of the gradients."""
        options = self.wish.options
        return options is not None and options.scale == "none"

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
        self,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        local: Container[Any] = (),
        scaler: Any = None,
    ) -> Outcome:
        """What becomes of a step's gradients.

        All ranks of the process set decide together on those of the variables that they share.
        Those of local variables, and all on a rank outside of the set, stay this rank's own.

        Args:
            gradients: None where there is none on this rank; ``tf.IndexedSlices`` that are reduced
                become dense, and those that are voted on too if the wish says so.
            variables: theirs, in the same order on all ranks.
            local: the variables that are not shared.
            scaler: divides by the loss's scale, which verdicts then carry.

        Returns:
            One gradient a variable, and whether the step counts: bool[], or None if every step
            does. A vote gives one to each variable, zeros where no rank has any.

        Raises:
            ValueError: ranks differ in variables or options; on all ranks alike.
            TypeError: a gradient of a type that cannot be exchanged; a ValueError on other ranks.
        """
        if any(exchange.closed for exchange in self._open.values()):  # by shutdown()
            self._open.clear()
            self._sessions.clear()
        results: list[Any] = list(gradients)
        counts: tf.Tensor | None = None
        own = [variable in local for variable in variables]
        for side in sorted(set(own), reverse=True):  # the shared ones know whether a step counts
            places = [place for place, found in enumerate(own) if found is side]
            part = [gradients[place] for place in places], [variables[place] for place in places]
            with told_as_horovod():
                if side or not self.included:
                    decided, counts = self._alone(*part, local=side)
                else:
                    decided, counts = self._together(*part, scaler)
            for place, result in zip(places, decided, strict=True):
                results[place] = result
        return results, counts if self.conditional else None

    def _together(self, gradients: Sequence[Any], variables: Sequence[Any], scaler: Any) -> Outcome:
        # Votes abstain in what there is no gradient for; sums are of what there is.
        given = () if self.wish.votes else present(gradients)
        make = self._make_votes if self.wish.votes else self._make_sums
        found = self._find(given, variables, lambda: make(gradients, variables))
        results, counts = found(self._dense(gradients, variables))
        if scaler is not None and self.unscaled_verdicts:
            results = [scaled(result, scaler) for result in results]
        return results, counts

    def _alone(self, gradients: Sequence[Any], variables: Sequence[Any], *, local: bool) -> Outcome:
        wish = self.wish
        divisor = len(job.members(wish.process_set)) if local and wish.scale_local else 1
        if wish.passes == 1:
            return [divided(gradient, divisor) for gradient in gradients], None
        divisor *= wish.passes if wish.average else 1
        dense = [densified(gradient) for gradient in gradients]

        def make() -> GradientExchange:
            def mean(arrays: list[Array]) -> list[Array]:
                return [array / array.dtype.type(divisor) for array in arrays]

            return GradientSums(present_specs(dense, variables), wish.passes, mean)

        key = ("alone", divisor, *present(gradients))
        results, counts = self._find(key, variables, make)(dense)
        return results, counts

    def _find(
        self, key: Any, variables: Sequence[Any], make: Callable[[], GradientExchange]
    ) -> GradientExchange:
        """The exchange of some variables, and of what else ``key`` says."""
        # Sources that are no variables are known by their places and shapes.
        kept = [v for v in variables if hasattr(v, "assign")]
        unkept: Any = ()
        if len(kept) < len(variables):
            unkept = tuple((str(v.shape), v.dtype) for v in variables)
        full = (tuple(map(id, kept)), unkept, key)
        found = self._open.get(full)
        if found is None:
            found = self._open[full] = make()
            for variable in kept:
                weakref.finalize(variable, self._open.pop, full, None)
        return found

    def _dense(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        for ordinal, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            sparse = isinstance(gradient, tf.IndexedSlices)
            if sparse and self.wish.votes and not self.wish.sparse_as_dense:
                raise TypeError(
                    f"variable {name_of(variable, ordinal)!r}: expected a dense gradient, got "
                    "tf.IndexedSlices; give sparse_as_dense=True"
                )
        return [densified(gradient) for gradient in gradients]

    def _make_sums(self, gradients: Sequence[Any], variables: Sequence[Any]) -> GradientExchange:
        wish = self.wish
        stream = job.adhoc(wish.process_set)
        # Whoever is refused tells the others, who would wait for it in the opening.
        with stream.refusing(Opening.kind, GRADIENTS):
            specs = present_specs(self._dense(gradients, variables), variables)
            reduction = plain.gradient_reduction(wish)
        stream.open(GRADIENTS, method=REDUCED)
        return GradientSums(specs, wish.passes, reduction())

    def _make_votes(self, gradients: Sequence[Any], variables: Sequence[Any]) -> GradientExchange:
        wish = self.wish
        assert wish.options is not None
        with job.adhoc(wish.process_set).refusing(Opening.kind, GRADIENTS):
            specs = make_specs(self._dense(gradients, variables), variables)
            for spec in specs:
                check_dtype(f"variable {spec.name!r}", spec.dtype)
            check_bucket_bytes(wish.bucket_bytes)
            groups = group_positions(wish.groups, variables, VARIABLES, "tf.Variable")
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


def present(gradients: Sequence[Any]) -> tuple[bool, ...]:
    """Of which variables there is a gradient."""
    return tuple(gradient is not None for gradient in gradients)


def present_specs(gradients: Sequence[Any], variables: Sequence[Any]) -> list[TensorSpec]:
    """The tensors that there are."""
    return [s for s in make_specs(gradients, variables) if gradients[s.ordinal] is not None]


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
