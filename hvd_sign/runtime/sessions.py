"""The votes of one optimizer: all its gradients, bucket by bucket, once a step."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.algorithms import Sign, make_algorithm
from hvd_sign.core import kernels
from hvd_sign.core.buckets import Bucket, TensorSpec, apart, plan_buckets
from hvd_sign.core.observe import observers
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.stats import recorder
from hvd_sign.core.training import TrainingOptions
from hvd_sign.devices import ABSENT, Operand
from hvd_sign.engine.progress import Handle, Stream
from hvd_sign.errors import DisagreementError
from hvd_sign.exchanges import AUTO
from hvd_sign.exchanges.planning import planned_bucket_bytes
from hvd_sign.rounds.base import Round, Subject
from hvd_sign.rounds.choice import make_round
from hvd_sign.rounds.dense import MeanRound, WarmingRound
from hvd_sign.runtime.checkpoints import RULE, STEP, check_state
from hvd_sign.runtime.claims import agree_on_session, made_alike
from hvd_sign.runtime.comparing import Comparison
from hvd_sign.runtime.measuring import load_or_measure
from hvd_sign.transports.communication import Pending
from hvd_sign.votes import MajorityVote, VoteRule, initial_of

BUCKET_BYTES = 25 * 2**20
"""Default size of a bucket, in bytes of fp32 gradient."""

DEFAULTS = TrainingOptions()

UNDER_WAY = "a step's votes have begun, and its step() has not ended them"


class VoteSession:
    """Votes on a fixed list of tensors, step after step.

    A bucket is launched once every one of its tensors is ready and all buckets before it are
    launched, so that all ranks launch them in the same order.

    Args:
        stream: this session's own.
        specs: the tensors, in order of registration; the same on all ranks. Those that go dense
            get the mean of all ranks' gradients, see ``MeanRound``.
        rule: decides.
        options: the same on all ranks.
        bucket_bytes: size of a bucket, in bytes of fp32 gradient, or ``"auto"`` to plan it from
            the link's measured constants.
        groups: positions of tensors that share a bucket; replaces ``bucket_bytes``.
        told: ordinals of tensors that are no gradients: the majority decides them, whatever rule
            and algorithm; the rule neither weighs them nor learns from them.
        training: the same on all ranks.

    Attributes:
        step: the number of the step that is next or under way.
        comparison: of what ranks have in common; None: none.

    Raises:
        ValueError: ``bucket_bytes`` is no size, the transport cannot hold such votes, or ranks
            differ in the tensors or the options; the same on every rank.
    """

    def __init__(
        self,
        stream: Stream,
        specs: Sequence[TensorSpec],
        rule: VoteRule,
        options: VoteOptions,
        *,
        bucket_bytes: int | str = BUCKET_BYTES,
        groups: Sequence[Sequence[int]] | None = None,
        told: Collection[int] = (),
        training: TrainingOptions = DEFAULTS,
    ) -> None:
        agree_on_session(stream, specs, rule, options, training, bucket_bytes, groups)
        if AUTO in (options.exchange, bucket_bytes) and stream.transport.link is None:
            stream.transport.link = load_or_measure(stream.transport)
        self.stream = stream
        self.options = options
        self._algorithm = algorithm = make_algorithm(options.algorithm)
        majority = MajorityVote()
        told = () if rule == majority and not algorithm.averages else told

        def make() -> list[Round]:
            size = bucket_bytes
            if isinstance(size, str):
                sizes = (spec.size for spec in specs)
                size = planned_bucket_bytes(sizes, options, stream.transport)
            where, rounds = (stream.transport, stream.number), []
            for bucket in apart(plan_buckets(specs, size, groups), told):
                decided = (rule, algorithm)
                if bucket.specs[0].ordinal in told:
                    decided = (majority, Sign() if algorithm.averages else algorithm)
                subject = Subject(bucket, *decided, options, *where)
                dense = not bucket.specs[0].vote
                rounds.append(MeanRound(subject) if dense else make_round(subject))
            return rounds

        self._voting = made_alike(stream, options, make)
        self._warmup_steps = training.warmup_steps
        self._warming: list[Round] = []
        self.rule = rule
        self._learned = initial_of(rule, stream.transport.size)
        stream.starts_ahead = all(vote.starts_ahead for vote in self._voting)
        self._bucket_of = {
            spec.ordinal: bucket.index for bucket in self.buckets for spec in bucket.specs
        }
        self._operands: dict[int, Operand] = {}
        self._waiting: list[int] = []
        self._handles: list[Handle] = []
        self._launched: list[list[Operand]] = []
        self._restore: weakref.WeakMethod[Callable[[], None]] | None = None
        self.comparison: Comparison | None = None
        self.step = 0
        self._lock = threading.Lock()
        self._reset()

    @property
    def buckets(self) -> list[Bucket]:
        """What travels together, in the order in which it is launched."""
        return [vote.bucket for vote in self._voting]

    @property
    def warming_up(self) -> bool:
        """Whether the step that is next or under way is one of the warm-up's, which are dense."""
        return self.step < self._warmup_steps

    @property
    def _rounds(self) -> list[Round]:
        return self.rounds_of(self.step)

    def common_state(self) -> dict[str, npt.NDArray[Any]]:
        """The part of ``state()`` that has to be the same on all ranks.

        Returns:
            ``"step"``: int64[], the number of steps; and under ``"rule/..."`` copies of what the
            rule has learned.
        """
        learned = {f"{RULE}{name}": array.copy() for name, array in self._learned.items()}
        return {STEP: np.array(self.step), **learned}

    def take_common_state(self, common: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from another rank's ``common_state()``; the algorithm's arrays stay as they are.

        Raises:
            ValueError: it is not of such a session; nothing was changed.
            AssertionError: votes are under way, with another number of steps.
        """
        check_state(common, self._learned)
        if self.under_way and int(common[STEP]) != self.step:
            raise AssertionError(f"state: expected it before votes have begun; {UNDER_WAY}")
        self.step = int(common[STEP])
        for name, array in self._learned.items():
            numbers = np.array(common[f"{RULE}{name}"], array.dtype)
            self._learned[name] = numbers.reshape(array.shape)
        for vote in self._voting:
            vote.weigh(self._learned)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What a checkpoint keeps: ``common_state()``, and copies of this rank's own arrays.

        Returns:
            By plane and ordinal, such as ``"momentum/3"``, the algorithm's arrays, and the residual
            of a feedback: flat, fp32, or fp64 for fp64. Tensors that have never voted have none.

        Raises:
            AssertionError: votes are under way, which change the arrays.
        """
        if self.under_way and self._algorithm.keeps:
            raise AssertionError(f"state: expected to be asked between steps; {UNDER_WAY}")
        kept = self.common_state()
        for vote in self._voting:
            kept |= vote.states.arrays()
        return kept

    def held(self) -> dict[str, Any]:
        """The algorithm's arrays themselves, where they live, by plane and ordinal."""
        return {name: array for vote in self._voting for name, array in vote.states.held().items()}

    def check_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises what ``load_state()`` would; changes nothing."""
        if self.under_way:
            raise AssertionError(f"state: expected to be loaded between steps; {UNDER_WAY}")
        known = check_state(state, self._learned)
        for vote in self._voting:
            known |= vote.states.check(state)
        for name in sorted(state.keys() - known):
            keeper = f"{self._algorithm!r} and {self.rule!r}"
            raise ValueError(f"state: expected that of {keeper}, got {name!r}")

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from what ``state()`` returned; what is common must be so on every rank.

        Args:
            state: an algorithm's arrays that are not in it begin at zero.

        Raises:
            ValueError: the number of steps or an array of the rule's is missing, one has another
                size than here or is not finite, or is of another algorithm; nothing was changed.
            AssertionError: votes are under way.
        """
        self.check_state(state)
        self.take_common_state(state)
        for vote in self._voting:
            vote.states.load(state)

    @property
    def under_way(self) -> bool:
        """Whether a step's votes have begun and not been waited for."""
        return bool(self._operands or self._handles)

    def ready(self, ordinal: int, operand: Operand) -> None:
        """Tells that a tensor's gradient is complete; it must not change until ``finish()``."""
        with self._lock:
            self._operands[ordinal] = operand
            self._waiting[self._bucket_of[ordinal]] -= 1
            while len(self._handles) < len(self._rounds) and not self._waiting[len(self._handles)]:
                self._launch(None)

    def finish(self, missing: Callable[[int], Operand]) -> bool:
        """Launches what is left, waits for all verdicts and leaves them with the operands.

        Args:
            missing: makes the operand of a tensor, by ordinal, that was never ready in this step.

        Returns:
            Whether the step counts: False if ``nonfinite="skip"`` and a rank met NaN or Inf, in
            which case no verdict was written.

        Raises:
            DisagreementError: on all ranks alike: what they compared differs.
        """
        with self._lock:
            while len(self._handles) < len(self._rounds):
                self._launch(missing)
            comparison = self._comparison_at(self.step)
            if comparison is not None:
                steps = comparison.run(self.step, comparison.sums(self.common_state()))
                self._handles.append(self.stream.submit(f"step {self.step}: checksums", steps))
        begin = time.monotonic()
        try:
            with recorder.charging(self.stream.spent), kernels.ExactFloats():
                return self._wait()
        finally:
            self._watch(begin)
            self.step += 1
            if not self.warming_up:
                self._warming = []
            self._reset()

    def _wait(self) -> bool:
        for handle in self._handles:
            handle.wait()
        counts = self.end_step(self.step)
        if self.options.nonfinite == "skip":
            if counts:
                for vote, operands in zip(self._rounds, self._launched, strict=True):
                    vote.write(operands)
            recorder.add(skipped_steps=int(not counts))
        comparison = self._comparison_at(self.step)
        if comparison is not None and comparison.sentence is not None:
            raise DisagreementError(comparison.sentence)
        return counts

    def _comparison_at(self, step: int) -> Comparison | None:
        due = self.comparison is not None and self.comparison.due(step)
        return self.comparison if due else None

    def absent_step(self, step: int) -> list[tuple[str, Iterator[Pending]]]:
        """A step's votes, by name, of a rank that has joined."""
        held = []
        for vote in self.rounds_of(step):
            absent = [ABSENT for _ in vote.bucket.specs]
            steps = vote.run(step, absent, joined=True, write=False)
            held.append((f"step {step}: {vote.bucket}", steps))
        comparison = self._comparison_at(step)
        if comparison is not None:
            held.append((f"step {step}: checksums", comparison.run(step, None)))
        return held

    def rounds_of(self, step: int) -> list[Round]:
        """What is held in a step, in the order in which it is launched."""
        if step >= self._warmup_steps:
            return self._voting
        if not self._warming:
            self._warming = [WarmingRound(vote) for vote in self._voting]
        return self._warming

    def end_step(self, step: int) -> bool:
        """Ends a step whose votes have: keeps what it made, and learns, if it counts.

        Returns:
            Whether it does.
        """
        skips = self.options.nonfinite == "skip"
        rounds = self.rounds_of(step)
        counts = not (skips and any(vote.nonfinite for vote in rounds))
        for vote in rounds:
            vote.states.end(counts=counts)
        if counts and self.rule.learns and rounds is self._voting:
            self._learn()
        return counts

    def _learn(self) -> None:
        """Lets the rule learn from the last step's votes, the same on all ranks."""
        counted = [vote for vote in self._voting if vote.rule.learns]
        judged = sum(vote.judged for vote in counted)
        agreed = sum(vote.agreed for vote in counted)
        try:
            learned = self.rule.learn(self._learned, np.array(judged), np.array(agreed))
            if not isinstance(learned, dict) or learned.keys() != self._learned.keys():
                raise ValueError(
                    f"op: {self.rule!r}: learn(): expected arrays by the names of initial()'s, "
                    f"{sorted(self._learned)}, got {learned!r}"
                )
            self._learned = learned
            for vote in self._voting:
                vote.weigh(self._learned)
        except Exception as error:  # the stream fails, so that the other ranks hear of it
            self.stream.submit(f"step {self.step}: what {self.rule!r} learns", failing(error))
            raise

    def _watch(self, begin: float) -> None:
        # Tells the observers of the step that has ended; it was waited for since `begin`.
        if observers.timeline is not None:
            observers.timeline.span(
                "exposed wait", self.stream.number, begin, time.monotonic(), step=self.step
            )
        if observers.record is not None:
            observers.record.step(
                stream=self.stream.number,
                step=self.step,
                buckets=len(self._rounds),
                exchanges=[vote.options.exchange for vote in self._rounds],
                segments=[vote.segments for vote in self._rounds],
                **recorder.take(self.stream.spent).asdict(),
            )

    def _launch(self, missing: Callable[[int], Operand] | None) -> None:
        vote = self._rounds[len(self._handles)]
        operands = []
        for spec in vote.bucket.specs:
            operand = self._operands.get(spec.ordinal)
            if operand is None:
                assert missing is not None
                operand = missing(spec.ordinal)
            operands.append(operand)
        steps = vote.run(self.step, operands, write=self.options.nonfinite != "skip")
        name = f"step {self.step}: {vote.bucket}"
        self._handles.append(self.stream.submit(name, steps))
        self._launched.append(operands)

    def _reset(self) -> None:
        self._operands.clear()
        self._handles = []
        self._launched = []
        self._waiting = [len(bucket.specs) for bucket in self.buckets]
        restore = self._restore() if self._restore is not None else None
        if restore is not None:
            restore()

    def abandon(self) -> bool:
        """Ends what a backward pass without ``step()`` has begun, abstaining in the rest.

        Returns:
            Whether anything was.
        """
        with self._lock:
            begun = self.under_way
            while begun and len(self._handles) < len(self._rounds):
                self._launch(lambda ordinal: ABSENT)
            self._reset()
        return begun

    def on_reset(self, restore: Callable[[], None]) -> None:
        """Has a method called whenever a step's votes are over; it is not kept alive."""
        self._restore = weakref.WeakMethod(restore)


def failing(error: Exception) -> Iterator[Pending]:
    """A vote that raises at once."""
    raise error
    yield
