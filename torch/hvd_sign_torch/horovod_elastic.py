"""Horovod's elastic jobs where ours has to stand in its place: ranks that vote come and go."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from horovod.common.elastic import run_fn
from horovod.common.exceptions import HorovodInternalError
from horovod.torch import elastic
from horovod.torch.elastic.state import (
    OptimizerStateHandler,
    get_handler_registry,
    set_handler_registry,
)

from hvd_sign.algorithms import make_algorithm
from hvd_sign.errors import VoteError
from hvd_sign.frontend.checkpoints import Ranks, exchanged
from hvd_sign.runtime.checkpoints import State, common_part, own_part, refitted
from hvd_sign_torch.backend import horovod_api, init, shutdown
from hvd_sign_torch.checkpoints import all_ranks
from hvd_sign_torch.exchanging_optimizer import ExchangingOptimizer
from hvd_sign_torch.gradient_votes import GradientVotes
from hvd_sign_torch.named_operations import number_anew
from hvd_sign_torch.state import broadcast_optimizer_state
from hvd_sign_torch.vote_state import STATE, as_arrays, as_tensors
from hvd_sign_torch.voting_optimizer import VotingOptimizer


class VotingStateHandler(OptimizerStateHandler):  # type: ignore[misc]
    """An optimizer that votes, in an elastic state.

    What all ranks have in common is rank 0's after ``sync()``; what an algorithm keeps of a rank's
    own gradients stays that rank's, and a rank that is new goes on as those before it would vote.

    Raises:
        ValueError: it votes among some of the ranks only.
    """

    def __init__(self, optimizer: VotingOptimizer) -> None:
        _check_votes_among_all(optimizer)
        self._is_new = True
        self._restored: dict[str, Any] | None = None
        super().__init__(optimizer)

    def set_value(self, value: VotingOptimizer) -> None:
        """Keeps another optimizer's."""
        _check_votes_among_all(value)
        super().set_value(value)

    @property
    def _votes(self) -> GradientVotes:
        votes: GradientVotes = self.value.votes
        return votes

    @property
    def number(self) -> int:
        """In what order optimizers' votes are opened."""
        return self._votes.number

    def save(self) -> None:
        """Keeps a copy of all of it."""
        super().save()
        self._restored = None

    def restore(self) -> None:
        """Goes back to the copy; amid a step the votes do when they are opened again."""
        saved = copy.deepcopy(self._saved_optimizer_state)
        if self._votes.under_way:
            self._restored = saved.pop(STATE)
            ExchangingOptimizer.load_state_dict(self.value, saved)
        else:
            kept = self._fitted(as_arrays(saved[STATE]))
            self.value.load_state_dict({**saved, STATE: as_tensors(kept)})

    def sync(self) -> None:
        """What is common from rank 0; on ranks that are new also what others keep of their own."""
        broadcast_optimizer_state(self.value, root_rank=0)
        ranks = all_ranks()
        are_new = ranks.gather(self._is_new)
        if any(are_new) and not all(are_new):
            self._join_in(ranks)
        self._is_new = False

    def _join_in(self, ranks: Ranks) -> None:
        """Gives ranks that are new what the others' arrays make; collective over all."""
        session = self._votes.session
        algorithm = make_algorithm(session.options.algorithm)
        if self._is_new:
            made = exchanged(ranks, [], algorithm, 0)
            session.load_state({**session.common_state(), **made})
            self.save()
        else:
            exchanged(ranks, [own_part(session.state())], None, 0)

    def open(self) -> None:
        """Opens the votes anew among the ranks that there are now, if ranks have changed."""
        session = self._votes.session
        if not session.stream.closed:
            return
        kept = session.state() if self._restored is None else as_arrays(self._restored)
        self._restored = None
        self._votes.open()
        self.value.zero_grad()  # may have some of the last step's verdicts
        self._votes.session.load_state(self._fitted(kept))

    def _fitted(self, kept: State) -> dict[str, Any]:
        """What votes kept, for the voters that there are now."""
        session = self._votes.session
        common = refitted(common_part(kept), session.rule, session.stream.transport.size)
        return {**common, **own_part(kept)}


def _check_votes_among_all(optimizer: VotingOptimizer) -> None:
    votes = optimizer.votes
    if votes is None or votes.session.stream.transport.size != horovod_api.size():
        raise ValueError(
            "TorchState: expected an optimizer that votes among all ranks, got one that votes "
            "among a process set, which does not outlast a change of ranks"
        )


class TorchState(elastic.TorchState):  # type: ignore[misc]
    """Horovod's ``TorchState``: a model, an optimizer and objects that all ranks have in common.

    Optimizers may vote, among all ranks. When ranks have come or gone their votes are opened anew
    among those that there are; number of steps, what the wrapped optimizer keeps and the model are
    rank 0's then, as with Horovod. What an algorithm keeps of a rank's own gradients that rank
    keeps, or has as it was committed after a failure; a new rank begins as the median of the
    others', unless the algorithm's ``resized`` says otherwise. What a rule has learned of each
    voter begins anew where their number has changed.

    Raises:
        ValueError: an optimizer votes among some ranks only.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        known = get_handler_registry()
        set_handler_registry([(VotingOptimizer, VotingStateHandler), *known])
        try:
            super().__init__(*args, **kwargs)
        finally:  # Horovod's own state knows nothing of votes
            set_handler_registry(known)

    def __setattr__(self, name: str, value: Any) -> None:
        """As Horovod's, also for an optimizer that votes in the place of one that does not."""
        if name in self.__dict__ and isinstance(value, torch.optim.Optimizer):
            votes = isinstance(value, VotingOptimizer)
            kind: Any = VotingStateHandler if votes else OptimizerStateHandler
            if type(self._handlers.get(name)) is not kind:
                self._handlers[name] = kind(value)
                self._saved_state.pop(name, None)
        super().__setattr__(name, value)

    def sync(self) -> None:
        """Gives all ranks what they have in common; collective."""
        with _lost_ranks():
            self.open_votes()
            super().sync()

    def open_votes(self) -> None:
        """Opens votes among the ranks that there are now, if ranks have changed; collective."""
        found = [h for h in self._handlers.values() if isinstance(h, VotingStateHandler)]
        for handler in sorted(found, key=lambda handler: handler.number):
            handler.open()


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Horovod's ``run``: a function that begins again, with a common state, when ranks change.

    What is reset then is hvd_sign, and Horovod with it. Votes that end because a rank is lost are
    Horovod's ``HorovodInternalError`` here, whatever they are elsewhere.
    """

    @functools.wraps(func)
    def train(state: Any, *args: Any, **kwargs: Any) -> Any:
        with _lost_ranks():
            if isinstance(state, TorchState):
                state.open_votes()  # which no sync() has where ranks have only gone
            return func(state, *args, **kwargs)

    return run_fn(train, _reset)  # type: ignore[no-any-return]


@contextmanager
def _lost_ranks() -> Iterator[None]:
    """Within it, votes that Horovod has ended raise what Horovod's ``run`` answers."""
    try:
        yield
    except VoteError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HorovodInternalError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise HorovodInternalError(str(error)) from error


def _reset() -> None:
    while True:
        shutdown()
        number_anew()
        try:
            return init()
        except HorovodInternalError:  # one more rank was lost meanwhile
            continue
