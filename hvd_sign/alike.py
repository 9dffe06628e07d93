"""What must be the same on all ranks before ``init()`` goes on, since ranks would part by it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hvd_sign.agreement import disagreement, refusal
from hvd_sign.errors import DisagreementError
from hvd_sign.process import load_mpi

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
    """
    mpi = load_mpi()
    world = mpi.COMM_WORLD
    if isinstance(comm, mpi.Intracomm):
        yield comm
    elif comm is None or len(comm) == 0:
        yield world
    else:
        made = world.Create_group(world.Get_group().Incl(list(comm)))
        try:
            yield made
        finally:
            made.Free()


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
