"""The votes of one optimizer: all its gradients, bucket by bucket, once a step."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from hvd_sign.agreement import disagreement
from hvd_sign.algorithms import make_algorithm
from hvd_sign.ballots import BallotBox, HostVoter, Voter
from hvd_sign.boxes import check_possible, make_box
from hvd_sign.buckets import Bucket, TensorSpec, check_bucket_bytes, plan_buckets
from hvd_sign.dense import DenseBox
from hvd_sign.engine import Handle, Stream
from hvd_sign.errors import DisagreementError
from hvd_sign.exchanges import AUTO
from hvd_sign.measuring import load_or_measure
from hvd_sign.observe import observers
from hvd_sign.options import VoteOptions
from hvd_sign.pipeline import PipelinedBox
from hvd_sign.planning import planned_bucket_bytes
from hvd_sign.stats import recorder
from hvd_sign.votes import VoteRule

BUCKET_BYTES = 25 * 2**20
"""Default size of a bucket, in bytes of fp32 gradient."""


class VoteSession:
    """Votes on a fixed list of tensors, step after step.

    A bucket is launched once every one of its tensors is ready and all buckets before it are
    launched, so that all ranks launch them in the same order.

    Args:
        stream: this session's own.
        specs: the tensors, in order of registration; the same on all ranks.
        rule: decides.
        options: the same on all ranks.
        bucket_bytes: size of a bucket, in bytes of fp32 gradient, or ``"auto"`` to plan it from
            the link's measured constants.
        groups: positions of tensors that share a bucket; replaces ``bucket_bytes``.

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
    ) -> None:
        check_bucket_bytes(bucket_bytes)
        check_possible(options, stream.transport)
        _agree(stream, specs, rule, options, bucket_bytes, groups)
        if AUTO in (options.exchange, bucket_bytes) and stream.transport.link is None:
            stream.transport.link = load_or_measure(stream.transport)
        if isinstance(bucket_bytes, str):
            sizes = (spec.size for spec in specs)
            bucket_bytes = planned_bucket_bytes(sizes, options, stream.transport)
        buckets = plan_buckets(specs, bucket_bytes, groups)
        self.stream = stream
        self._algorithm = make_algorithm(options.algorithm)
        self.options = options
        self._boxes = [
            make_box(bucket, rule, self._algorithm, options, stream.transport, stream.number)
            for bucket in buckets
        ]
        stream.starts_ahead = all(isinstance(box, PipelinedBox | DenseBox) for box in self._boxes)
        self._bucket_of = {
            spec.ordinal: bucket.index for bucket in buckets for spec in bucket.specs
        }
        self._voters: dict[int, Voter] = {}
        self._waiting = [0] * len(buckets)
        self._handles: list[Handle] = []
        self._launched: list[list[Voter]] = []
        self._restore: weakref.WeakMethod[Callable[[], None]] | None = None
        self._step = 0
        self._lock = threading.Lock()
        self._reset()

    @property
    def buckets(self) -> list[Bucket]:
        """What travels together, in the order in which it is launched."""
        return [box.bucket for box in self._boxes]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What a checkpoint keeps: the number of steps, and the algorithm's arrays."""
        return {"step": np.array(self._step), **self._algorithm.state()}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Goes on from what ``state()`` returned; the number of steps must be every rank's.

        Raises:
            KeyError: something is missing.
        """
        self._step = int(state["step"])
        self._algorithm.load_state({k: array for k, array in state.items() if k != "step"})

    @property
    def under_way(self) -> bool:
        """Whether a step's votes have begun and not been waited for."""
        return bool(self._voters or self._handles)

    def ready(self, ordinal: int, voter: Voter) -> None:
        """Tells that a tensor's gradient is complete; it must not change until ``finish()``."""
        with self._lock:
            self._voters[ordinal] = voter
            self._waiting[self._bucket_of[ordinal]] -= 1
            while len(self._handles) < len(self._boxes) and not self._waiting[len(self._handles)]:
                self._launch(None)

    def finish(self, missing: Callable[[int], Voter]) -> bool:
        """Launches what is left, waits for all verdicts and leaves them with the voters.

        Args:
            missing: makes the voter of a tensor, by ordinal, that was never ready in this step.

        Returns:
            Whether the step counts: False if ``nonfinite="skip"`` and a rank met NaN or Inf, in
            which case no verdict was written.
        """
        with self._lock:
            while len(self._handles) < len(self._boxes):
                self._launch(missing)
        begin = time.monotonic()
        try:
            with recorder.charging(self.stream.spent):
                return self._wait()
        finally:
            self._watch(begin)
            self._step += 1
            self._reset()

    def _wait(self) -> bool:
        for handle in self._handles:
            handle.wait()
        if self.options.nonfinite == "skip":
            if any(box.nonfinite for box in self._boxes):
                recorder.add(skipped_steps=1)
                return False
            for box, voters in zip(self._boxes, self._launched, strict=True):
                box.obey(voters)
        return True

    def _watch(self, begin: float) -> None:
        # Tells the observers of the step that has ended; it was waited for since `begin`.
        if observers.timeline is not None:
            observers.timeline.span(
                "exposed wait", self.stream.number, begin, time.monotonic(), step=self._step
            )
        if observers.record is not None:
            observers.record.step(
                stream=self.stream.number,
                step=self._step,
                buckets=len(self._boxes),
                exchanges=[box.options.exchange for box in self._boxes],
                chunks=[box.chunks for box in self._boxes],
                **recorder.take(self.stream.spent).asdict(),
            )

    def _launch(self, missing: Callable[[int], Voter] | None) -> None:
        box = self._boxes[len(self._handles)]
        voters = []
        for spec in box.bucket.specs:
            voter = self._voters.get(spec.ordinal)
            if voter is None:
                assert missing is not None
                voter = missing(spec.ordinal)
            voters.append(voter)
        steps = box.decide(self._step, voters, obey=self.options.nonfinite != "skip")
        name = f"step {self._step}: {box.bucket}"
        self._handles.append(self.stream.submit(name, steps))
        self._launched.append(voters)

    def _reset(self) -> None:
        self._voters.clear()
        self._handles = []
        self._launched = []
        self._waiting = [len(box.bucket.specs) for box in self._boxes]
        restore = self._restore() if self._restore is not None else None
        if restore is not None:
            restore()

    def on_reset(self, restore: Callable[[], None]) -> None:
        """Has a method called whenever a step's votes are over; it is not kept alive."""
        self._restore = weakref.WeakMethod(restore)

    def serve(self) -> ServedSession:
        """Begins to serve as a rank that has joined: abstains in every vote of the others.

        What a backward pass without ``step()`` has begun is ended first, abstaining in the rest.
        """
        with self._lock:
            begun = self.under_way
            while begun and len(self._handles) < len(self._boxes):
                self._launch(lambda ordinal: HostVoter(None, None))
            step = self._step + int(begun)
            self._reset()
        return ServedSession(self, self._boxes, step)


class ServedSession:
    """A joined rank's side of a session: abstains until every rank has joined."""

    def __init__(self, session: VoteSession, boxes: Sequence[BallotBox], step: int) -> None:
        self._session = session
        self._boxes = boxes
        self.first_step = self._step = step
        self._ended = threading.Event()
        self._handle: Handle | None = None
        if boxes:
            self._next()
        else:
            self._ended.set()

    def wait(self) -> None:
        """Blocks until every rank has joined.

        Raises:
            Exception: whatever ended a vote early.
        """
        while not self._ended.is_set():
            with self._session.stream.engine.lock:
                handle = self._handle
            assert handle is not None
            handle.wait()  # a next one is there before this one ends, unless all have joined

    def steps_of_all(self) -> list[int]:
        """How many steps each rank had taken when it joined; only after ``wait()``."""
        return self._session.stream.transport.gather_objects(self.first_step)

    def _next(self) -> None:
        for box in self._boxes:
            absent: list[Voter] = [HostVoter(None, None) for _ in box.bucket.specs]
            steps = box.decide(self._step, absent, joined=True, obey=False)
            last = box is self._boxes[-1]
            with self._session.stream.engine.lock:
                self._handle = self._session.stream.submit(
                    f"step {self._step}: {box.bucket}",
                    steps,
                    self._round_ended if last else None,
                    patient=True,
                )
        self._step += 1

    def _round_ended(self) -> None:
        if all(box.all_joined for box in self._boxes):
            self._session._step = self._step
            recorder.take(self._session.stream.spent)
            self._ended.set()
        else:
            self._next()


def _agree(
    stream: Stream,
    specs: Sequence[TensorSpec],
    rule: VoteRule,
    options: VoteOptions,
    bucket_bytes: int | str,
    groups: Sequence[Sequence[int]] | None,
) -> None:
    """Raises the same DisagreementError on every rank if they differ in anything that matters."""
    claim = {"op": repr(rule), **asdict(options)}
    shared: dict[str, Any] = {"groups": None, "bucket_bytes": bucket_bytes}
    if groups is not None:
        shared = {"groups": [sorted(group) for group in groups], "bucket_bytes": None}
    digest = sha256(repr((claim, list(specs), shared)).encode()).digest()
    if len(set(stream.transport.gather_objects(digest))) == 1:
        return
    claims = stream.transport.gather_objects((claim, list(specs), shared))
    sentence = disagreement("DistributedOptimizer", [theirs[0] for theirs in claims])
    tensors = [{spec.ordinal: vars(spec) for spec in theirs[1]} for theirs in claims]
    for ordinal in sorted(set().union(*tensors)):
        if sentence is not None:
            break
        rows = [theirs.get(ordinal, {}) for theirs in tensors]
        name = next(row["name"] for row in rows if row)
        nothing = dict.fromkeys(vars(TensorSpec("", (), "", 0)), "nothing")
        sentence = disagreement(f"parameter {name!r}", [{**nothing, **row} for row in rows])
    if sentence is None:
        sentence = disagreement("DistributedOptimizer", [theirs[2] for theirs in claims])
    raise DisagreementError(sentence)
