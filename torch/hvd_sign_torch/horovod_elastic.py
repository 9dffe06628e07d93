"""Horovod's elastic jobs where ours has to stand in its place; votes are not served there yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from horovod.common.elastic import run_fn
from horovod.torch import elastic

from hvd_sign_torch.backend import init, shutdown
from hvd_sign_torch.voting_optimizer import VotingOptimizer


class TorchState(elastic.TorchState):  # type: ignore[misc]
    """Horovod's ``TorchState``: a model, an optimizer and objects that all ranks have in common.

    Raises:
        NotImplementedError: an optimizer votes. Horovod would make its state by a step, which
            votes, and would give rank 0's to ranks that have another one.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, VotingOptimizer):
            raise NotImplementedError(
                f"TorchState: {name} is an optimizer that votes, which elastic jobs do not serve "
                "yet; start a job of a fixed size, or take an optimizer without a vote"
            )
        super().__setattr__(name, value)


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Horovod's ``run``: a function that begins again, with a common state, when ranks change.

    What is reset then is hvd_sign, and Horovod with it.
    """
    return run_fn(func, _reset)  # type: ignore[no-any-return]


def _reset() -> None:
    shutdown()
    init()
