"""The gradients of a step, handed to the host bucket by bucket, and what comes back of them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from hvd_sign.core import kernels
from hvd_sign.core.buckets import TensorSpec
from hvd_sign_tf import bridge

Array = npt.NDArray[Any]


class Outcome(NamedTuple):
    """What became of a step's gradients.

    Attributes:
        gradients: one a variable, or None where there is none.
        counts: whether the step counts: bool[]; None: as every step.
        voted: whether what is voted on was, or became means: bool[]; None: it always is.
    """

    gradients: list[Any]
    counts: tf.Tensor | None = None
    voted: tf.Tensor | None = None


class GradientExchange(ABC):
    """What all ranks do together with a step's gradients, in a graph or eagerly.

    Args:
        buckets: what is handed to the host together.
        passes: gradients that are added up to one, over as many calls.

    Attributes:
        scale: of the loss, which this pass's gradients carry.
        voted: whether the last step's gradients were voted on.
        begins_apart: ``begin_pass()`` is called before any gradient is handed over.
        lock: of the state of a step.
    """

    scale = 1.0
    voted = True
    begins_apart = False

    def __init__(self, buckets: Sequence[Sequence[TensorSpec]], passes: int) -> None:
        self.buckets = buckets
        self.passes = passes
        self._pass = 0
        self._begun = False
        self._sums: dict[int, Array] = {}
        self._places: dict[int, Array] = {}
        self._error: BaseException | None = None
        self.lock = threading.Lock()
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
        self,
        gradients: Sequence[tf.Tensor | None],
        scale: tf.Tensor | None = None,
        after: Sequence[tf.Tensor] = (),
    ) -> Outcome:
        """One pass.

        Args:
            gradients: dense, in order; None: there is none on this rank.
            scale: of the loss, float32[], which the gradients carry; None: none.
            after: in a graph, what it does not end before.

        Returns:
            What all ranks made of them, and whether that is to be applied.

        Raises:
            RuntimeError: within XLA or a graph without order.
            tf.errors.OpError: ranks differ, or something failed; eagerly the error itself.
        """
        bridge.check_context("gradients")
        if not tf.executing_eagerly():
            return self._build(list(gradients), scale, after)
        self._error = None
        try:
            return Outcome(*self._eagerly(list(gradients), scale))
        except tf.errors.OpError:
            if self._error is not None:
                raise self._error from None
            raise

    def _build(
        self,
        gradients: list[tf.Tensor | None],
        scale: tf.Tensor | None,
        after: Sequence[tf.Tensor] = (),
    ) -> Outcome:
        results: list[Any] = [None] * len(gradients)
        members: list[TensorSpec] = []
        outs: list[tf.Tensor] = []
        for number, bucket in enumerate(self.buckets):
            places = [bridge.empty(spec.shape, spec.dtype) for spec in bucket]
            # Its own operation, so that it runs while other gradients are still computed.
            of_bucket = [gradients[spec.ordinal] for spec in bucket]
            self._hand_over(bucket, of_bucket, places, scale, first=not number)
            members += bucket
            outs += places
        filled, *told = self._await(members, outs, after)
        for spec, result in zip(members, filled, strict=True):
            results[spec.ordinal] = tf.reshape(result, spec.shape)
        return Outcome(results, *told)

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
            with self.lock:
                if first and not self.begins_apart:
                    self.begin_pass()
                self.scale = float(factor[0])
                for spec, out in zip(specs, inputs[: len(specs)], strict=True):
                    self._accumulate(spec.ordinal, arrays.get(spec.ordinal), out)

        present = [
            tf.reshape(gradient, spec.shape or (1,))
            for spec, gradient in zip(specs, gradients, strict=True)
            if gradient is not None
        ]
        factor = tf.ones(1) if scale is None else tf.reshape(scale, [1])
        bridge.on_host(self.keeping_errors(begin), [*outs, *present, factor], [])

    def _await(
        self, specs: list[TensorSpec], outs: list[tf.Tensor], after: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        def end(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
            *filled, told = outputs
            with self.lock:
                told[:] = self._end_pass(), self.voted
                for spec, out in zip(specs, filled, strict=True):
                    place = self._places.pop(spec.ordinal, out)
                    # TensorFlow may have handed out copies, as it does of what is not in a graph.
                    if not np.may_share_memory(place, out):
                        np.copyto(out, place)

        told = bridge.empty((2,), "bool")
        *filled, told = bridge.on_host(self.keeping_errors(end), after, [*outs, told])
        return filled, told[0], told[1]

    @property
    def last_pass(self) -> bool:
        """Whether the pass that is next or under way ends a step."""
        return self._pass == self.passes - 1

    def begin_pass(self) -> None:
        """Begins a pass; the lock is held."""
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
                    with kernels.ExactFloats():
                        self._sums[ordinal] += gradient
            gradient = self._sums.get(ordinal)
        self._places[ordinal] = out
        if self.last_pass:
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

    def keeping_errors(self, work: bridge.Work) -> bridge.Work:
        """Work on the host, of which eager callers get the error itself."""

        def run(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
            try:
                work(inputs, outputs)
            except BaseException as error:
                self._error = error
                raise

        return run


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
