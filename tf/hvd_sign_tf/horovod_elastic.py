"""Horovod's elastic jobs where ours has to stand in its place; votes are not served there yet."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import horovod.tensorflow.keras.elastic as keras_elastic
import tensorflow as tf
from horovod.common.elastic import run_fn
from horovod.common.exceptions import HorovodInternalError
from horovod.tensorflow import elastic

from hvd_sign_tf.backend import init, shutdown
from hvd_sign_tf.wrapping import ExchangingOptimizer

OPERATIONS = re.compile("Horovod(Grouped)?(Allreduce|Allgather|Alltoall|Broadcast|Reducescatter)")


class RefusingVotes:
    """A state of Horovod's that takes no optimizer that votes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ExchangingOptimizer):
            raise NotImplementedError(
                f"{type(self).__name__}: {name} is an optimizer that votes, which elastic jobs do "
                "not serve yet; start a job of a fixed size, or take an optimizer without a vote"
            )
        super().__setattr__(name, value)


class TensorFlowKerasState(RefusingVotes, elastic.TensorFlowKerasState):
    """Horovod's: a model, an optimizer and objects that all ranks have in common.

    Raises:
        NotImplementedError: the optimizer votes.
    """


class KerasState(RefusingVotes, keras_elastic.KerasState):
    """Horovod's: ``TensorFlowKerasState`` for ``tf.keras``.

    Raises:
        NotImplementedError: the optimizer votes.
    """


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Horovod's ``run``: a function that begins again, with a common state, when ranks change.

    What is reset then is hvd_sign, and Horovod with it. Only what Horovod's operations report is
    tried again; every other error is raised.
    """

    @wraps(func)
    def attempt(*args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except tf.errors.UnknownError as error:
            if OPERATIONS.search(error.message):
                raise HorovodInternalError(error) from error
            raise

    return run_fn(attempt, _reset)  # type: ignore[no-any-return]


def _reset() -> None:
    shutdown()
    init()
