"""Which exchange of gradients serves which variables: opened at first use, kept while they live."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import tensorflow as tf

from hvd_sign.core.buckets import TensorSpec, check_bucket_bytes, check_dtype, group_positions
from hvd_sign.engine.operations import GRADIENTS, REDUCED, Opening
from hvd_sign.frontend.arguments import free_of_loss_scale
from hvd_sign.frontend.choice import Choice
from hvd_sign.runtime.checkpoints import STEP, common_part
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign.votes import make_rule
from hvd_sign_tf.arithmetic import densified, divided, loss_scale
from hvd_sign_tf.backend import backend, horovod_api
from hvd_sign_tf.comparing import Compared, compared
from hvd_sign_tf.errors import told_as_horovod
from hvd_sign_tf.gradient_votes import GradientVotes
from hvd_sign_tf.gradients import Array, GradientExchange, GradientSums, Outcome
from hvd_sign_tf.settings import EVERYTHING, ExchangeSettings

State = dict[str, Array]


class Exchanges:
    """The exchanges of one tape or optimizer, by its settings."""

    def __init__(self, settings: ExchangeSettings) -> None:
        self.settings = settings
        self._open: dict[Any, GradientExchange] = {}
        self._sessions: list[VoteSession] = []
        # States that were restored before their sessions were opened, by order of opening.
        self._restored: dict[int, State] = {}

    @property
    def conditional(self) -> bool:
        """Whether there are steps, or passes of a step, that are not applied."""
        options = self.settings.options
        skips = options is not None and options.nonfinite == "skip" and not self.settings.poisons
        return skips or self.settings.passes > 1

    @property
    def included(self) -> bool:
        """Whether this rank is in the process set."""
        return backend.rank() in backend.members(self.settings.process_set)

    @property
    def free_of_loss_scale(self) -> bool:
        """Whether verdicts are as large whatever factor the gradients carry."""
        options = self.settings.options
        return options is not None and free_of_loss_scale(options)

    def state(self) -> dict[str, Array]:
        """What a checkpoint keeps of all sessions."""
        states = dict(enumerate(session.state() for session in self._sessions)) | self._restored
        return {f"{i}/{k}": a for i, state in states.items() for k, a in state.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Goes on from what ``state()`` returned; sessions that are not open yet will.

        Raises:
            ValueError: it is damaged, or another algorithm's; nothing was changed. Of a session
                that is not open yet the step that opens it raises it, on all ranks alike.
        """
        parts: dict[int, State] = {}
        for key, array in state.items():
            position, _, name = key.partition("/")
            if not position.isdecimal():
                raise ValueError(f"state: expected names such as '0/step', got {key!r}")
            parts.setdefault(int(position), {})[name] = array
        opened = {n: part for n, part in parts.items() if n < len(self._sessions)}
        for number, part in opened.items():
            self._sessions[number].check_state(part)
        for number, part in opened.items():
            self._sessions[number].load_state(part)
        self._restored |= {n: part for n, part in parts.items() if n not in opened}

    def common_state(self) -> dict[int, State]:
        """What ranks go on from together, by session, those restored and not yet open included."""
        opened = dict(enumerate(session.common_state() for session in self._sessions))
        return opened | {number: common_part(state) for number, state in self._restored.items()}

    def take_common_state(self, everyones: Mapping[int, State]) -> None:
        """Goes on from another rank's ``common_state()``; all else stays as it is."""
        for number, common in everyones.items():
            if number < len(self._sessions):
                self._sessions[number].take_common_state(common)
            else:
                self._restored[number] = self._restored.get(number, {}) | common

    def exchange(
        self,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        local: Container[Any] = (),
        scaler: Any = None,
        optimizer: Any = None,
        choice: Choice | None = None,
    ) -> Outcome:
        """What becomes of a step's gradients.

        All ranks of the process set decide together on those of the variables that they share.
        Those of local variables, and all on a rank outside of the set, stay this rank's own.

        Args:
            gradients: None where there is none on this rank; ``tf.IndexedSlices`` that are reduced
                become dense, and those that are voted on too if the settings say so.
            variables: theirs, in the same order on all ranks.
            local: the variables that are not shared.
            scaler: divides by the loss's scale, which gradients carry and verdicts then too.
            optimizer: of Keras; its options are compared if ranks compare anything.
            choice: of the shared variables that are voted on; None: the settings'.

        Returns:
            One gradient a variable. A vote gives one to each variable, zeros where no rank has any.

        Raises:
            ValueError: ranks differ in variables or options; on all ranks alike.
            TypeError: a gradient of a type that cannot be exchanged, or a choice that is none; a
                ValueError on other ranks.
        """
        if any(exchange.closed for exchange in self._open.values()):  # by shutdown()
            self._open.clear()
            self._sessions.clear()
        results: list[Any] = list(gradients)
        outcome = Outcome(results)
        choice = self.settings.choice if choice is None else choice
        own = [variable in local for variable in variables]
        for side in sorted(set(own), reverse=True):  # the shared ones know whether a step counts
            places = [place for place, found in enumerate(own) if found is side]
            part = [gradients[place] for place in places], [variables[place] for place in places]
            with told_as_horovod():
                if side or not self.included:
                    outcome = self._alone(*part, local=side)
                else:
                    outcome = self._together(*part, scaler, optimizer, choice)
            for place, result in zip(places, outcome.gradients, strict=True):
                results[place] = result
        _, counts, voted = outcome
        warms_up = self.settings.training.warmup_steps > 0
        return Outcome(results, counts if self.conditional else None, voted if warms_up else None)

    def votes_on(self, variable: Any) -> bool:
        """Whether a shared variable is voted on once votes have begun."""
        return self.included and all(self._chosen(self.settings.choice, [variable]))

    def _together(
        self,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        scaler: Any,
        optimizer: Any,
        choice: Choice,
    ) -> Outcome:
        if not self.settings.votes:
            # Sums are of what there is.
            given = present(gradients)
            make = self._make_sums
            found = self._find(given, variables, lambda: make(gradients, variables))
            return found(self._dense(gradients, variables))
        # Votes abstain in what there is no gradient for.
        chosen = self._chosen(choice, variables)
        common = None
        if self.settings.training.check_every:
            names = [name_of(variable, ordinal) for ordinal, variable in enumerate(variables)]
            common = compared(names, variables, optimizer)
        votes = self._find(
            chosen, variables, lambda: self._make_votes(gradients, variables, chosen, common)
        )
        assert isinstance(votes, GradientVotes)
        scale = None if scaler is None else loss_scale(scaler)
        dense = self._dense(gradients, variables)
        return votes(dense, scale, [] if common is None else votes.check(common.tensors))

    def _chosen(self, choice: Choice, variables: Sequence[Any]) -> tuple[bool, ...]:
        """Of each variable whether it is voted on; empty: all are."""
        if choice == EVERYTHING:
            return ()
        with backend.adhoc(self.settings.process_set).refusing(Opening.kind, GRADIENTS):
            specs = make_specs([None] * len(variables), variables)
            return tuple(
                choice.votes(spec.name, variable, spec.size, {})
                for spec, variable in zip(specs, variables, strict=True)
            )

    def _alone(self, gradients: Sequence[Any], variables: Sequence[Any], *, local: bool) -> Outcome:
        settings = self.settings
        divisor = (
            len(backend.members(settings.process_set)) if local and settings.scale_local else 1
        )
        if settings.passes == 1:
            return Outcome([divided(gradient, divisor) for gradient in gradients])
        divisor *= settings.passes if settings.average else 1
        dense = [densified(gradient) for gradient in gradients]

        def make() -> GradientExchange:
            def mean(arrays: list[Array]) -> list[Array]:
                return [array / array.dtype.type(divisor) for array in arrays]

            return GradientSums(present_specs(dense, variables), settings.passes, mean)

        key = ("alone", divisor, *present(gradients))
        return self._find(key, variables, make)(dense)

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
            if sparse and self.settings.votes and not self.settings.sparse_as_dense:
                raise TypeError(
                    f"variable {name_of(variable, ordinal)!r}: expected a dense gradient, got "
                    "tf.IndexedSlices; give sparse_as_dense=True"
                )
        return [densified(gradient) for gradient in gradients]

    def _make_sums(self, gradients: Sequence[Any], variables: Sequence[Any]) -> GradientExchange:
        settings = self.settings
        stream = backend.adhoc(settings.process_set)
        # Whoever is refused tells the others, who would wait for it in the opening.
        with stream.refusing(Opening.kind, GRADIENTS):
            specs = present_specs(self._dense(gradients, variables), variables)
            reduction = horovod_api.gradient_reduction(settings)
        stream.open(GRADIENTS, method=REDUCED)
        return GradientSums(specs, settings.passes, reduction())

    def _make_votes(
        self,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        chosen: Sequence[bool],
        common: Compared | None,
    ) -> GradientExchange:
        settings = self.settings
        assert settings.options is not None
        with backend.adhoc(settings.process_set).refusing(Opening.kind, GRADIENTS):
            specs = make_specs(self._dense(gradients, variables), variables, chosen)
            for spec in specs:
                check_dtype(f"variable {spec.name!r}", spec.dtype)
            check_bucket_bytes(settings.bucket_bytes)
            groups = group_positions(settings.groups, variables, VARIABLES, "tf.Variable")
        session = backend.session(
            settings.process_set,
            specs,
            make_rule(settings.op),
            settings.options,
            bucket_bytes=settings.bucket_bytes,
            groups=groups,
            training=settings.training,
        )
        self._resume(session)
        return GradientVotes(session, settings, [] if common is None else common.names)

    def _resume(self, session: VoteSession) -> None:
        """Lets a new session go on from a checkpoint, if any rank has read one.

        Raises:
            ValueError: on all ranks alike: one has read a state that the session cannot take.
        """
        restored = self._restored.pop(len(self._sessions), None)
        common, error = None, None
        if restored is not None:
            common = common_part(restored)
            try:
                session.check_state(restored)
            except ValueError as refusal:
                error = str(refusal)
        everyones = session.stream.transport.gather_objects((common, error))
        for _, error in everyones:
            if error is not None:
                raise ValueError(error)
        self._sessions.append(session)
        read = [theirs for theirs, _ in everyones if theirs is not None]
        if read:  # a rank alone may have read it: what is common becomes everyone's
            furthest = max(read, key=lambda theirs: int(theirs[STEP]))
            session.load_state((restored or {}) | furthest)


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


def make_specs(
    gradients: Sequence[Any], variables: Sequence[Any], chosen: Sequence[bool] = ()
) -> tuple[TensorSpec, ...]:
    """The tensors of a session.

    Args:
        gradients: None where there is none.
        variables: theirs.
        chosen: whether each is voted on; empty: all are.

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
        vote = chosen[ordinal] if chosen else True
        specs.append(TensorSpec(name, tuple(shape), dtype, ordinal, vote))
    return tuple(specs)
