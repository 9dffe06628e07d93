"""The gradients of a step, handed to the host bucket by bucket, and what comes back of them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from hvd_sign.core.buckets import TensorSpec
from hvd_sign.devices import ABSENT, HOST, Operand
from hvd_sign.frontend.arguments import free_of_loss_scale
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign_tf import bridge

Array = npt.NDArray[Any]


class GradientExchange(ABC):
    """What all ranks do together with a step's gradients, in a graph or eagerly.

    Args:
        buckets: what is handed to the host together.
        passes: gradients that are added up to one, over as many calls.

    Attributes:
        scale: of the loss, which this pass's gradients carry.
    """

    scale = 1.0

    def __init__(self, buckets: Sequence[Sequence[TensorSpec]], passes: int) -> None:
        self.buckets = buckets
        self.passes = passes
        self._pass = 0
        self._begun = False
        self._sums: dict[int, Array] = {}
        self._places: dict[int, Array] = {}
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._eagerly = tf.function(self._build, reduce_retracing=True, autograph=False)
        # TensorFlow counts the traces of all exchanges together, and would warn of the fifth one.
        self._eagerly._omit_frequent_tracing_warning = True

    @abstractmethod
    def ready(self, ordinal: int, gradient: Array | None, out: Array) -> None:
        """A gradient is complete; ``out`` is filled by the time ``finish()`` returns.

        Args:
            ordinal: the gradient's.
            gradient: None: this rank has none.
            out: of its shape and type.
        """

    @abstractmethod
    def finish(self) -> bool:
        """Waits for all that was made ready; tells whether the step counts."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether there is nobody left to exchange with."""

    def __call__(
        self, gradients: Sequence[tf.Tensor | None], scale: tf.Tensor | None = None
    ) -> tuple[list[Any], tf.Tensor]:
        """One pass.

        Args:
            gradients: dense, in order; None: there is none on this rank.
            scale: of the loss, float32[], which the gradients carry; None: none.

        Returns:
            What all ranks made of them, and whether that is to be applied: bool[].

        Raises:
            RuntimeError: within XLA or a graph without order.
            tf.errors.OpError: ranks differ, or something failed; eagerly the error itself.
        """
        bridge.check_context("gradients")
        if not tf.executing_eagerly():
            return self._build(list(gradients), scale)
        self._error = None
        try:
            results, counts = self._eagerly(list(gradients), scale)
            return results, counts
        except tf.errors.OpError:
            if self._error is not None:
                raise self._error from None
            raise

    def _build(
        self, gradients: list[tf.Tensor | None], scale: tf.Tensor | None
    ) -> tuple[list[Any], tf.Tensor]:
        results: list[Any] = [None] * len(gradients)
        members: list[TensorSpec] = []
        outs: list[tf.Tensor] = []
        for number, bucket in enumerate(self.buckets):
            places = [bridge.empty(spec.shape, spec.dtype) for spec in bucket]
            # Its own operation, so that it runs while other gradients are still computed.
            of_bucket = [gradients[spec.ordinal] for spec in bucket]
            self._hand_over(bucket, of_bucket, places, scale, first=number == 0)
            members += bucket
            outs += places
        filled, counts = self._await(members, outs)
        for spec, result in zip(members, filled, strict=True):
            results[spec.ordinal] = tf.reshape(result, spec.shape)
        return results, counts

    def _hand_over(
        self,
        specs: Sequence[TensorSpec],
        gradients: list[tf.Tensor | None],
        outs: list[tf.Tensor],
        scale: tf.Tensor | None,
        *,
        first: bool,
    ) -> None:
        for spec, gradient in zip(specs, gradients, strict=True):
            if gradient is not None and not gradient.shape.is_compatible_with(spec.shape):
                raise ValueError(
                    f"variable {spec.name!r}: expected a gradient of shape {spec.shape}, got "
                    f"{gradient.shape}"
                )
        given = [spec.ordinal for spec, g in zip(specs, gradients, strict=True) if g is not None]

        def begin(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
            *taken, factor = inputs[len(specs) :]
            arrays = dict(zip(given, taken, strict=True))
            with self._lock:
                if first:
                    self._begin_pass()
                self.scale = float(factor[0])
                for spec, out in zip(specs, inputs[: len(specs)], strict=True):
                    self._accumulate(spec.ordinal, arrays.get(spec.ordinal), out)

        present = [
            tf.reshape(gradient, spec.shape or (1,))
            for spec, gradient in zip(specs, gradients, strict=True)
            if gradient is not None
        ]
        factor = tf.ones(1) if scale is None else tf.reshape(scale, [1])
        bridge.on_host(self._keeping_errors(begin), [*outs, *present, factor], [])

    def _await(
        self, specs: list[TensorSpec], outs: list[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        def end(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
            *filled, counts = outputs
            with self._lock:
                counts[0] = self._end_pass()
                for spec, out in zip(specs, filled, strict=True):
                    place = self._places.pop(spec.ordinal, out)
                    # TensorFlow may have handed out copies, as it does of what is not in a graph.
                    if not np.may_share_memory(place, out):
                        np.copyto(out, place)

        counts = bridge.empty((), "bool")
        *filled, counted = bridge.on_host(self._keeping_errors(end), [], [*outs, counts])
        return filled, tf.reshape(counted, [])

    def _begin_pass(self) -> None:
        if self._begun:  # and never ended: something between failed on this rank
            self._end_pass()
            self._places.clear()
        self._begun = True

    def _accumulate(self, ordinal: int, gradient: Array | None, out: Array) -> None:
        if self.passes > 1:
            if gradient is not None:
                if ordinal not in self._sums:
                    self._sums[ordinal] = gradient.copy()
                else:
                    self._sums[ordinal] += gradient
            gradient = self._sums.get(ordinal)
        self._places[ordinal] = out
        if self._pass == self.passes - 1:
            self.ready(ordinal, gradient, out)
        else:  # shows what there is so far, as Horovod
            out[...] = 0 if gradient is None else gradient

    def _end_pass(self) -> bool:
        self._begun = False
        self._pass += 1
        if self._pass < self.passes:
            return False
        self._pass = 0
        try:
            return self.conclude(self.finish(), self._places.values())
        finally:
            self._sums.clear()

    def conclude(self, counts: bool, outs: Iterable[Array]) -> bool:
        """What becomes of a step that does, or does not, count."""
        return counts

    def _keeping_errors(self, work: bridge.Work) -> bridge.Work:
        def run(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
            try:
                work(inputs, outputs)
            except BaseException as error:
                self._error = error
                raise

        return run


class GradientVotes(GradientExchange):
    """The votes on the gradients of some variables.

    Args:
        session: one tensor a variable.
        passes: as for all.
        average: the sum over the passes is divided by their number.
        poisons: a step that does not count is shown as Inf in all gradients, which a loss scaler
            then skips on all ranks alike; else as one that is not to be applied.
    """

    def __init__(
        self,
        session: VoteSession,
        passes: int,
        *,
        average: bool,
        poisons: bool,
    ) -> None:
        super().__init__([bucket.specs for bucket in session.buckets], passes)
        self.session = session
        self._poisons = poisons
        self._part = 1 / passes if average else 1.0
        # A sign is none the larger for it, and an algorithm has seen it.
        self._factor = 1.0 if free_of_loss_scale(session.options) else self._part

    def ready(self, ordinal: int, gradient: Array | None, out: Array) -> None:
        """Votes on a gradient; abstains in one that this rank has not."""
        unscale = self._part / self.scale
        self.session.ready(ordinal, Operand(HOST, gradient, out, self._factor, unscale))

    @property
    def closed(self) -> bool:
        """Whether the job was shut down."""
        return self.session.stream.closed

    def finish(self) -> bool:
        """Waits for the verdicts; abstains in what a failed step has not handed over."""
        return self.session.finish(lambda ordinal: ABSENT)

    def conclude(self, counts: bool, outs: Iterable[Array]) -> bool:
        """Shows a step that does not count as Inf, if asked to; else as zeros."""
        if counts:
            return True
        for out in outs:
            out.fill(np.inf if self._poisons else 0)
        return self._poisons


Finish = Callable[[list[Array]], list[Array]]


class GradientSums(GradientExchange):
    """What becomes of all gradients together where nothing is voted on, such as an allreduce.

    Args:
        specs: of the gradients that there are.
        passes: as for all.
        reduce: what is done with their sums, from arrays to as many of the same shapes.
    """

    def __init__(self, specs: Sequence[TensorSpec], passes: int, reduce: Finish) -> None:
        super().__init__([specs], passes)
        self._reduce = reduce
        self._given: list[tuple[Array, Array]] = []

    def ready(self, ordinal: int, gradient: Array | None, out: Array) -> None:
        """Keeps a gradient until all are there."""
        assert gradient is not None
        self._given.append((gradient, out))

    @property
    def closed(self) -> bool:
        """Never: it keeps nothing of the job."""
        return False

    def finish(self) -> bool:
        """Reduces all."""
        given, self._given = self._given, []
        reduced = self._reduce([gradient for gradient, _ in given])
        for (_, out), array in zip(given, reduced, strict=True):
            np.copyto(out, array)
        return True
