"""Start and end, shared with Horovod: MPI first, then Horovod, then ours; and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import horovod.torch as horovod
import torch
from horovod.torch import ProcessSet, global_process_set

from hvd_sign import runtime
from hvd_sign.options import choose
from hvd_sign.runtime import World
from hvd_sign_torch.horovod_collectives import TorchCollectives

_world: World | None = None


def init(*args: Any, **kwargs: Any) -> None:
    """Starts MPI, Horovod and the vote; takes ``horovod.torch.init``'s arguments.

    Collective over all ranks. May be called after ``horovod.torch.init()``, and again after
    ``shutdown()``.

    Raises:
        RuntimeError: MPI cannot be used; the message says why and what helps.
    """
    global _world
    transport = choose(
        "HVD_SIGN_TRANSPORT",
        os.environ.get("HVD_SIGN_TRANSPORT", "auto"),
        ("auto", "mpi", "horovod"),
    )
    gloo = os.environ.get("HOROVOD_CONTROLLER", "").lower() == "gloo"
    on_mpi = transport == "mpi" or (transport == "auto" and not gloo)
    if horovod.is_initialized() and "mpi4py.MPI" not in sys.modules:
        runtime.leave_mpi_to_horovod()
    if on_mpi or not gloo:
        # Also where votes do not need it: Horovod's shutdown would end what Horovod began.
        runtime.load_mpi()
    horovod.init(*args, **kwargs)
    if _world is not None:
        return
    _world = World(horovod.rank(), _mpi_ranks() if on_mpi else None)
    _open_adhoc(global_process_set)
    for process_set in kwargs.get("process_sets") or (args[1:2] or [()])[0] or ():
        if isinstance(process_set, ProcessSet):
            _open_adhoc(process_set)


def shutdown() -> None:
    """Waits for the votes under way, then shuts Horovod down. Collective over all ranks."""
    global _world
    runtime.shutdown()
    _world = None
    horovod.shutdown()


def world() -> World:
    """The ranks that ``init()`` found.

    Raises:
        RuntimeError: ``init()`` was not called.
    """
    if _world is None:
        raise RuntimeError("hvd_sign.torch has not been initialized; use hvd.init()")
    return _world


def votes_over_horovod() -> bool:
    """Whether votes travel over Horovod's own collectives; the same on all ranks."""
    return _world is not None and _world.over_horovod


def members(process_set: ProcessSet) -> Sequence[int]:
    """The Horovod ranks of a process set.

    Raises:
        ValueError: the process set has not been added to Horovod.
    """
    if process_set is global_process_set:
        return range(horovod.size())
    if process_set.process_set_id is None:
        raise ValueError(
            f"process_set: expected one that was given to hvd.init() or hvd.add_process_set(), "
            f"got {process_set}"
        )
    return list(process_set.ranks)


def add_process_set(process_set: ProcessSet | Sequence[int]) -> ProcessSet:
    """Horovod's ``add_process_set``, ready for votes. Collective over all ranks."""
    added = horovod.add_process_set(process_set)
    if _world is not None:
        _open_adhoc(added)
    return added


def remove_process_set(process_set: ProcessSet) -> bool:
    """Horovod's ``remove_process_set``. Collective over all ranks."""
    ranks = process_set.ranks
    removed = bool(horovod.remove_process_set(process_set))
    if removed and _world is not None and ranks is not None:
        _world.forget(ranks)
    return removed


def join(device: int = -1) -> int:
    """Serves the other ranks until all have joined: a joined rank abstains in every vote.

    Collective over all ranks. As after Horovod's ``join``, parameters of ranks that joined early
    are out of date: broadcast them from the returned rank.

    Args:
        device: as for ``horovod.torch.join``.

    Returns:
        The rank that joined last.
    """
    served = world().serve()
    return served.wait(int(horovod.join(device)))


def _mpi_ranks() -> list[int] | None:
    if horovod.size() == 1:
        return None
    here = torch.tensor([runtime.load_mpi().COMM_WORLD.Get_rank()])
    ranks = horovod.allgather(here, name="hvd_sign.mpi_ranks").tolist()
    # Processes that no MPI launcher started are each rank 0 of a world of their own.
    if len(set(ranks)) == len(ranks):
        return list(ranks)
    if os.environ.get("HVD_SIGN_TRANSPORT") == "mpi":
        raise RuntimeError(
            "HVD_SIGN_TRANSPORT=mpi, but the ranks were not started by MPI; use mpirun, "
            "srun --mpi=pmix or horovodrun --mpi"
        )
    return None


def _open_adhoc(process_set: ProcessSet) -> None:
    # Now, since all ranks are here: at first use ranks might come in different orders.
    ranks = members(process_set)
    if horovod.rank() in ranks:
        world().adhoc(ranks, TorchCollectives(process_set))
