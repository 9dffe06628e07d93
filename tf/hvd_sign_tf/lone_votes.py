"""Votes in one process, whose state comes and goes with each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from hvd_sign.algorithms import make_algorithm
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.training import TrainingOptions
from hvd_sign.devices import ABSENT, HOST, Operand
from hvd_sign.runtime.alone import lone_session
from hvd_sign.runtime.checkpoints import STEP
from hvd_sign_tf import bridge

Array = npt.NDArray[Any]


class LoneVotes:
    """A session of one rank, called from a graph or eagerly.

    Args:
        specs: the tensors.
        options: of the votes; the algorithm is one of hvd_sign's.
        training: what else is done with gradients.
    """

    def __init__(
        self, specs: Sequence[TensorSpec], options: VoteOptions, training: TrainingOptions
    ) -> None:
        self._session = lone_session(specs, options, training)
        self._feeds_back = make_algorithm(options.algorithm).feedback

    def __call__(
        self,
        step: tf.Tensor,
        gradients: Mapping[int, tf.Tensor],
        kept: Mapping[str, tf.Tensor],
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """One vote.

        Args:
            step: how many there were before: an integer[].
            gradients: by ordinal; each of its spec's type.
            kept: what the algorithm keeps for these, by plane and ordinal, such as
                ``"momentum/3"``.

        Returns:
            The verdicts, and what the algorithm keeps now, in the order in which these came.

        Raises:
            RuntimeError: within XLA, or in a graph without an order.
        """
        bridge.check_context("optimizer")
        count = 1 + len(gradients)

        def work(inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
            steps, states = inputs[0], dict(zip(kept, inputs[count:], strict=True))
            self._begin({STEP: np.array(steps[0]), **states})
            signals = zip(gradients, inputs[1:count], outputs[1:count], strict=True)
            for ordinal, signal, out in signals:
                self._session.ready(ordinal, Operand(HOST, signal, out))
            self._session.finish(lambda ordinal: ABSENT)
            now = self._session.state() if self._feeds_back else self._session.held()
            for name, out in zip(kept, outputs[count:], strict=True):
                out[...] = now[name].reshape(out.shape) if name in now else 0

        results = bridge.call(work, [tf.cast(step, tf.int64), *gradients.values(), *kept.values()])
        return results[1:count], results[count:]

    def _begin(self, state: dict[str, Array]) -> None:
        """Goes on from a state, in the arrays that the session has, but for residuals."""
        held = self._session.held()
        if state.keys() - {STEP} <= held.keys():
            self._session.take_common_state({STEP: state.pop(STEP)})
            for name, array in state.items():
                held[name][...] = array.reshape(-1)
        else:
            self._session.load_state(state)
