"""The votes on the gradients of some variables, and what each rank does with them before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from hvd_sign.devices import ABSENT, HOST, Operand
from hvd_sign.frontend.arguments import free_of_loss_scale
from hvd_sign.frontend.clipping import clip_values, multiply, norm_of, shrinking
from hvd_sign.runtime.comparing import Comparison, checksum
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign_tf import bridge
from hvd_sign_tf.gradients import Array, GradientExchange
from hvd_sign_tf.settings import ExchangeSettings


class GradientVotes(GradientExchange):
    """The votes on the gradients of some variables.

    Args:
        session: one tensor a variable.
        settings: say what else is done with the gradients: the sum over the passes may be divided
            by their number; a step that does not count may be shown as Inf in all gradients, which
            a loss scaler then skips on all ranks alike, else as one that is not to be applied.
        compared: the names of what ranks compare.
    """

    def __init__(
        self, session: VoteSession, settings: ExchangeSettings, compared: Sequence[str]
    ) -> None:
        super().__init__([bucket.specs for bucket in session.buckets], settings.passes)
        self.session = session
        self._poisons = settings.poisons
        self._part = 1 / settings.passes if settings.average else 1.0
        self._training = settings.training
        self._free = free_of_loss_scale(session.options)
        self._held: list[tuple[int, Array | None, Array]] = []  # until the norm of all is known
        self._checksums: list[int] = []
        every = settings.training.check_every
        if every:
            self.begins_apart = True
            session.comparison = Comparison(
                session.stream.transport, every, compared, self._taken_checksums
            )

    def check(self, common: Callable[[], list[tf.Tensor]]) -> list[tf.Tensor]:
        """Begins a pass, and takes checksums of what ranks compare if they do so at its end.

        Args:
            common: reads it, in the order of the names.

        Returns:
            In a graph, what the pass must not end before. What comes after it in the graph cannot
            change what it reads.
        """
        bridge.check_context("gradients")
        if tf.executing_eagerly():
            if self._compares_now():
                self._checksums = [checksum(tensor.numpy()) for tensor in common()]
            return []

        def begin(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
            outputs[0][0] = self._compares_now()

        def take(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
            self._checksums = [checksum(array) for array in inputs]
            outputs[0][0] = True

        def read() -> tf.Tensor:
            tensors = [bridge.at_least_1d(tensor) for tensor in common()]
            return bridge.on_host(self.keeping_errors(take), tensors, [bridge.empty((), "bool")])[0]

        due = bridge.on_host(self.keeping_errors(begin), [], [bridge.empty((), "bool")])[0]
        return [tf.cond(tf.reshape(due, []), read, lambda: due)]

    def _compares_now(self) -> bool:
        """Begins a pass; tells whether ranks compare something at its end."""
        comparison = self.session.comparison
        assert comparison is not None
        with self.lock:
            self.begin_pass()
            return self.last_pass and comparison.due(self.session.step)

    def _taken_checksums(self) -> list[int]:
        return self._checksums

    def ready(self, ordinal: int, gradient: Array | None, out: Array) -> None:
        """Clips a gradient and votes on it; abstains in one that this rank has not."""
        bound = self._training.clip_value
        if gradient is not None and self._part != 1:
            multiply(gradient, self._part, out=gradient)  # the passes' sum, which is ours
        if gradient is not None and bound is not None:
            clip_values(gradient, bound * self.scale, out=out)
            gradient = out
        if self._training.clip_norm is None:
            self._vote(ordinal, gradient, out)
        else:
            self._held.append((ordinal, gradient, out))

    def _clip_by_norm(self) -> None:
        """Votes on all, as soon as all are there."""
        assert self._training.clip_norm is not None
        held, self._held = self._held, []
        norms = (norm_of(gradient) for _, gradient, _ in held if gradient is not None)
        factor = shrinking(norms, self._training.clip_norm * self.scale)
        for ordinal, gradient, out in held:
            if gradient is not None and factor < 1:
                multiply(gradient, factor, out=out)
                gradient = out
            self._vote(ordinal, gradient, out)

    def _vote(self, ordinal: int, gradient: Array | None, out: Array) -> None:
        # What is free of it gets the loss's scale; of all else gradients have brought it along.
        factor = self.scale if self._free else 1.0
        self.session.ready(ordinal, Operand(HOST, gradient, out, factor, 1 / factor))

    @property
    def closed(self) -> bool:
        """Whether the job was shut down."""
        return self.session.stream.closed

    def finish(self) -> bool:
        """Waits for what comes of it; abstains in what a failed step has not handed over."""
        self.voted = not self.session.warming_up
        if self._held:
            self._clip_by_norm()
        return self.session.finish(lambda ordinal: ABSENT)

    def conclude(self, counts: bool, outs: Iterable[Array]) -> bool:
        """Shows a step that does not count as Inf, if asked to; else as zeros."""
        if counts:
            return True
        for out in outs:
            out.fill(np.inf if self._poisons else 0)
        return self._poisons
