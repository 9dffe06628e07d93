"""What must be the same on all ranks before ``init()`` goes on, since ranks would part by it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hvd_sign.core.agreement import disagreement, refusal
from hvd_sign.core.process import load_mpi
from hvd_sign.errors import DisagreementError

if TYPE_CHECKING:
    from mpi4py import MPI

TRANSPORT = "HVD_SIGN_TRANSPORT"

REMEDY = (
    "set the variable for all ranks: mpirun hands it on by -x NAME, MPICH's by -genv NAME VALUE"
)


@contextmanager
def callers(comm: Any) -> Iterator[MPI.Intracomm]:
    """A communicator of the ranks that call ``init(comm)`` together, for as long as it is held.

    Args:
        comm: a communicator; or a list of ranks of MPI_COMM_WORLD, this one among them; none or
            an empty one: all.

    Raises:
        ValueError: it is something else.
    """
    mpi = load_mpi()
    if comm is None:
        yield mpi.COMM_WORLD
    elif isinstance(comm, mpi.Intracomm) and comm != mpi.COMM_NULL:
        yield comm
    else:
        made = _communicator_of(comm)
        try:
            yield made
        finally:
            made.Free()


def _communicator_of(ranks: Any) -> MPI.Intracomm:
    """A new communicator of some ranks of MPI_COMM_WORLD, of this one too; of none: of all."""
    world = load_mpi().COMM_WORLD
    if not isinstance(ranks, Iterable):
        raise ValueError(f"comm: expected an mpi4py communicator or ranks, got {ranks!r}")
    members = list(ranks) or list(range(world.Get_size()))
    if len(set(members)) != len(members) or not set(members) <= set(range(world.Get_size())):
        raise ValueError(f"comm: expected ranks below {world.Get_size()}, each once, got {members}")
    if world.Get_rank() not in members:
        raise ValueError(
            f"comm: rank {world.Get_rank()} of MPI_COMM_WORLD is none of {members}; only these "
            "call init()"
        )
    made: MPI.Intracomm = world.Create_group(world.Get_group().Incl(members))
    return made


def check_alike(communicator: MPI.Intracomm, runtime: str) -> None:
    """Compares what ``init()`` of either runtime goes by. Collective over the ranks of both.

    Args:
        communicator: of the ranks that call ``init()``.
        runtime: this rank's, ``"horovod"`` or ``"mpi"``.

    Raises:
        DisagreementError: ranks differ; the same on all of them.
    """
    claim = {
        "the runtime (HVD_SIGN_RUNTIME)": runtime,
        TRANSPORT: os.environ.get(TRANSPORT, "auto"),
    }
    check_variables("hvd.init()", communicator.allgather(claim))


def check_variables(who: str, claims: Sequence[Mapping[str, Any]]) -> None:
    """Raises DisagreementError if ranks differ in an environment variable, or one was refused.

    Args:
        who: needs them to be the same.
        claims: each rank's values by variable, or its refusal.
    """
    sentence = refusal(who, claims) or disagreement(who, claims)
    if sentence is not None:
        raise DisagreementError(f"{sentence}; {REMEDY}")
