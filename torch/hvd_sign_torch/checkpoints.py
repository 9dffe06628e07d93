"""Checkpoints of a whole job, votes included: what is common once, and what is each rank's own."""

from __future__ import annotations

import copy
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hvd_sign.algorithms import Algorithm, make_algorithm
from hvd_sign.core.agreement import reason
from hvd_sign.frontend.checkpoints import LOAD, Loaded, Ranks, load, save
from hvd_sign.runtime.checkpoints import common_part, own_part, refitted
from hvd_sign.runtime.sessions import VoteSession
from hvd_sign_torch.backend import backend, horovod_api
from hvd_sign_torch.vote_state import STATE, as_arrays, as_tensors
from hvd_sign_torch.voting_optimizer import VotingOptimizer

logger = logging.getLogger("hvd_sign")

NAME = "hvd_sign.checkpoint"
SAID = ("op", "algorithm", "ties", "seed", "scale", "nonfinite")
"""Of what ranks agree on for an optimizer's votes, what decides verdicts."""


def save_checkpoint(
    path: str | os.PathLike[str], model: Any = None, optimizer: Any = None, **more: Any
) -> None:
    """Saves a job's state in the place of what was saved under a path. Blocks; collective.

    By rank 0 what all ranks have in common: its model, its optimizer, number of steps and what a
    vote rule has learned; and by every rank what is its own: the arrays that an algorithm keeps of
    its gradients. The new files are written beside the old ones, which stay until all of them, on
    all ranks, are on disk, so that a job that ends at any moment leaves one or the other.

    Args:
        path: a folder, on a file system that ranks share, or of each rank's own.
        model: or anything with ``state_dict()`` and ``load_state_dict()``.
        optimizer: wrapped or not.
        more: other models, optimizers, schedulers, scalers, under names of one's own; or values
            such as ``epoch=3``: numbers, strings, tensors, and lists, tuples and dicts of such.

    Raises:
        CheckpointError: on all ranks alike, with rank and reason: a file cannot be written, votes
            are under way, or a value cannot be read again safely.
    """
    things = _named(model, optimizer, more)
    ranks, sessions = all_ranks(), _sessions(things)
    states: dict[str, Any] = {}

    def take() -> tuple[Any, Any]:
        own, votes = {}, {}
        for name, thing in things.items():
            state = thing.state_dict() if _keeps_state(thing) else thing
            if name in sessions:
                kept = as_arrays(state[STATE])
                common = as_tensors(common_part(kept))
                own[name] = own_part(kept)
                votes[name] = {"said": _said(sessions[name]), "common": common}
            states[name] = _without_votes(state) if isinstance(thing, VotingOptimizer) else state
            _check_safe(name, states[name])
        return votes, own

    def dump(told: list[dict[str, Any]]) -> Any:
        votes = {name: part for theirs in reversed(told) for name, part in theirs.items()}
        shapes = {name: _shapes(thing) for name, thing in things.items()}
        common = {"states": states, "votes": votes, "shapes": shapes}
        return lambda file: torch.save(common, file)

    save(ranks, Path(path), take, dump)


def load_checkpoint(
    path: str | os.PathLike[str], model: Any = None, optimizer: Any = None, **more: Any
) -> dict[str, Any]:
    """Goes on from what ``save_checkpoint()`` saved. Blocks; collective.

    With as many ranks as saved it, a resumed run is the uninterrupted one, bit for bit. With more
    or fewer, every rank goes on from the coordinate-wise median of the old ranks' arrays, whose
    sign is what their majority would vote, unless the algorithm's ``resized`` says otherwise: of
    ``"residual"`` the sum over ranks is kept, in equal parts. What a rule has learned of each voter
    then begins anew.

    Args:
        path: as it was saved, seen by every rank or, with as many ranks, each rank's own.
        model: and all else that is to go on from it, by the names under which it was saved.
        optimizer: see there.
        more: see there.

    Returns:
        What else was saved, by name.

    Raises:
        CheckpointError: on all ranks alike, with rank and file: there is none, a file is missing,
            damaged or of another checkpoint, or does not fit; all is then as it was. Where there is
            none it is a ``FileNotFoundError`` too.
    """
    things = _named(model, optimizer, more)
    ranks, sessions = all_ranks(), _sessions(things)
    read = load(ranks, Path(path), {name: _algorithm(s) for name, s in sessions.items()})
    before: dict[str, Any] = {}
    rest: dict[str, Any] = {}

    def take() -> None:
        rest.update(_take(things, sessions, read, before))

    try:
        ranks.together(LOAD, take)
    except Exception:
        for name, state in before.items():
            things[name].load_state_dict(state)
        raise
    return rest


def _take(
    things: Mapping[str, Any],
    sessions: Mapping[str, VoteSession],
    read: Loaded,
    before: dict[str, Any],
) -> dict[str, Any]:
    """Loads a checkpoint into things, whose earlier states come to ``before``; what is left."""
    try:
        common = torch.load(io.BytesIO(read.common), map_location="cpu", weights_only=True)
        states, votes, shapes = (common[part] for part in ("states", "votes", "shapes"))
    except Exception as error:  # whatever the unpickler meets
        raise ValueError(f"{read.file}: cannot be read: {reason(error)}") from error
    for name, thing in things.items():
        who = f"{read.file}: {name}"
        if name not in states:
            raise ValueError(f"{who}: expected one of {sorted(states)}")
        if not _keeps_state(thing):
            raise TypeError(f"{who}: expected load_state_dict(), got {type(thing).__name__}")
        if _shapes(thing) != shapes[name]:
            raise ValueError(
                f"{who}: expected parameters of shapes {shapes[name]}, by group, got "
                f"{_shapes(thing)}"
            )
        if isinstance(thing, VotingOptimizer):
            thing.check_between_steps("load_state_dict")
    for name, thing in things.items():
        state = states[name]
        if name in read.own:
            session, kept = sessions[name], as_arrays(votes[name]["common"])
            if name in read.refitted:
                kept = refitted(kept, session.rule, read.refitted[name])
            state = {**state, STATE: as_tensors({**kept, **read.own[name]})}
            _tell_differences(name, votes[name]["said"], _said(session))
        try:
            before[name] = _copied(thing.state_dict())
            thing.load_state_dict(state)
        except Exception as error:
            raise ValueError(f"{read.file}: {name}: {reason(error)}") from error
    return {name: state for name, state in states.items() if name not in things}


def all_ranks() -> Ranks:
    """Those that were there at ``init()``. Raises NotInitializedError: there was none."""
    backend.adhoc(horovod_api.global_process_set)
    return Ranks(
        backend.rank(),
        lambda value: horovod_api.allgather_object(value, NAME),
        lambda value, root: horovod_api.broadcast_object(value, root, f"{NAME}.common"),
    )


def _named(model: Any, optimizer: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    given = {"model": model, "optimizer": optimizer}
    return {name: thing for name, thing in given.items() if thing is not None} | dict(more)


def _sessions(things: Mapping[str, Any]) -> dict[str, VoteSession]:
    """Of the optimizers that vote on this rank, by name."""
    found = {n: t.votes for n, t in things.items() if isinstance(t, VotingOptimizer)}
    return {name: votes.session for name, votes in found.items() if votes is not None}


def _algorithm(session: VoteSession) -> Algorithm:
    return make_algorithm(session.options.algorithm)


def _said(session: VoteSession) -> dict[str, str]:
    """What decides an optimizer's verdicts, in words."""
    claim = {"op": repr(session.rule), **session.options.claim()}
    claim["algorithm"] = repr(_algorithm(session))
    return {key: str(claim[key]) for key in SAID}


def _tell_differences(name: str, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    differences = [
        f"{key} was {then[key]} and is {now[key]}" for key in then if then[key] != now[key]
    ]
    if differences and backend.rank() == 0:
        logger.warning(
            "load_checkpoint: %s goes on otherwise than it would have: %s",
            name,
            "; ".join(differences),
        )


def _keeps_state(thing: Any) -> bool:
    return all(callable(getattr(thing, m, None)) for m in ("state_dict", "load_state_dict"))


def _without_votes(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != STATE}


def _shapes(thing: Any) -> list[list[list[int]]] | None:
    """Of an optimizer's parameters, by group."""
    if not isinstance(thing, torch.optim.Optimizer):
        return None
    return [[list(p.shape) for p in group["params"]] for group in thing.param_groups]


def _check_safe(name: str, value: Any) -> None:
    """Raises TypeError unless PyTorch would read it again without running what is in a file."""
    file = io.BytesIO()
    try:
        torch.save(_skeleton(value), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        told = str(error).split("\n")[0]
        raise TypeError(
            f"{name}: expected numbers, strings, tensors, and lists, tuples and dicts of such, got "
            f"what torch.load(weights_only=True) refuses: {told}"
        ) from error


def _skeleton(value: Any) -> Any:
    """All but the tensors, which are safe, and large."""
    if isinstance(value, torch.Tensor):
        return None
    if type(value) in (list, tuple):
        return type(value)(map(_skeleton, value))
    if isinstance(value, dict):
        return {key: _skeleton(item) for key, item in value.items()}
    return value


def _copied(value: Any) -> Any:
    """A copy in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return copy.deepcopy(value)
