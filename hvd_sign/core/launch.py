"""How this process was started, by what launchers leave in the environment of those they start."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

logger = logging.getLogger("hvd_sign")

ELASTIC = "HOROVOD_ELASTIC"
"""The variable of horovodrun's elastic jobs, which end with fewer processes than they began."""


TORCHRUN = "torchrun"


class Launcher(NamedTuple):
    """What a launcher tells to each process that it starts, each in a variable.

    Attributes:
        name: for messages.
        size: how many it started.
        rank: which of them this one is.
        local_rank: which of those on this node.
        marks: variables that must be there too, where the others may be anybody's.
    """

    name: str
    size: str = ""
    rank: str = ""
    local_rank: str = ""
    marks: tuple[str, ...] = ()


LAUNCHERS = (
    Launcher(TORCHRUN, "WORLD_SIZE", "RANK", "LOCAL_RANK", ("TORCHELASTIC_RUN_ID",)),
    Launcher("horovodrun", "HOROVOD_SIZE", "HOROVOD_RANK", "HOROVOD_LOCAL_RANK"),
    Launcher(
        "Open MPI's mpirun",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    Launcher("MPICH's mpiexec or srun --mpi=pmi2", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    Launcher("MPICH's mpiexec", "MPI_LOCALNRANKS", local_rank="MPI_LOCALRANKID"),
    Launcher("a PMIx launcher", rank="PMIX_RANK"),
    Launcher(
        "srun",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_PROCID",
        "SLURM_LOCALID",
        ("SLURM_STEP_NUM_TASKS",),  # a batch script is a process 0, too
    ),
    Launcher(
        "a launcher of torch.distributed",
        "WORLD_SIZE",
        "RANK",
        "LOCAL_RANK",
        ("MASTER_ADDR", "RANK"),
    ),
)
"""The inner ones first: mpirun starts its daemons by srun, whose variables its ranks inherit."""


class Started(NamedTuple):
    """What the innermost launcher says of how many there are.

    Attributes:
        launcher: which.
        variable: by which it says so.
        value: of the variable.
        size: how many processes it started, at least.
    """

    launcher: str
    variable: str
    value: str
    size: int


def started(environment: Mapping[str, str]) -> Started | None:
    """How many processes were started together with this one; None if no launcher says.

    Args:
        environment: of this process.
    """
    for launcher in _present(environment):
        variable = launcher.size or launcher.rank
        value = _number(environment, variable)
        # Of rank 0, which may be alone, nothing is known.
        if value:
            size = value if launcher.size else value + 1
            return Started(launcher.name, variable, environment[variable], size)
    return None


class Placement(NamedTuple):
    """Where this process stands among those that were started with it; None: nobody says.

    Attributes:
        launcher: the innermost.
        size: how many there are, at least.
        rank: which of them this one is.
        local_rank: which of those on this node.
    """

    launcher: str | None = None
    size: int | None = None
    rank: int | None = None
    local_rank: int | None = None


def placement(environment: Mapping[str, str]) -> Placement:
    """What launchers say of this process: the innermost, where it is silent the next outer one.

    Args:
        environment: of this process.
    """
    found = Placement()
    for launcher in _present(environment):
        told = (launcher.size, launcher.rank, launcher.local_rank)
        numbers = [_number(environment, variable) for variable in told]
        if numbers == [None, None, None]:
            continue
        size, rank, local_rank = (
            theirs if ours is None else ours
            for ours, theirs in zip(found[1:], numbers, strict=True)
        )
        found = Placement(found.launcher or launcher.name, size, rank, local_rank)
    return found


def _present(environment: Mapping[str, str]) -> Iterator[Launcher]:
    """Launchers whose marks there are, the innermost first."""
    return (one for one in LAUNCHERS if all(mark in environment for mark in one.marks))


def _number(environment: Mapping[str, str], variable: str) -> int | None:
    value = environment.get(variable, "")
    return int(value) if value.isdecimal() else None


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses ranks of torchrun; asked before MPI starts.

    Under srun, MPI would take all that torchrun started on a node for one and the same rank.

    Args:
        environment: of this process.

    Raises:
        RuntimeError: torchrun started several processes.
    """
    told = started(environment)
    if told is not None and told.launcher == TORCHRUN and told.size > 1:
        raise RuntimeError(
            f"{told.variable}={told.value}: torchrun started several processes, but votes do not "
            f"travel over torch.distributed; start them by mpirun -np {told.size} python ..., by "
            f"srun --mpi=pmix python ..., or by horovodrun -np {told.size} python ...; for a "
            f"process that is meant to be alone, unset {told.variable}"
        )


def check_not_a_copy(size: int, who: str) -> None:
    """Finds processes that were started as several ranks, but each think they are the only one.

    A process that is alone in an allocation for several is warned: it may be meant.

    Args:
        size: how many ranks there are.
        who: says so, "MPI" or "Horovod".

    Raises:
        RuntimeError: there is one, but a launcher started several.
    """
    if size > 1 or os.environ.get(ELASTIC) == "1":
        return
    check_launcher()
    told = started(os.environ)
    if told is not None and told.size > 1:
        raise RuntimeError(
            f"{told.variable}={told.value}: {told.launcher} started several processes, but {who} "
            "sees each as rank 0 of 1; start them by the mpirun of the MPI that this Python uses, "
            "by srun --mpi=pmix (--mpi=pmi2 where that MPI is MPICH), or by horovodrun; for a "
            f"process that is meant to be alone, unset {told.variable}"
        )
    tasks = os.environ.get("SLURM_NTASKS", "")
    by_srun_or_none = told is None or told.variable == "SLURM_STEP_NUM_TASKS"
    if by_srun_or_none and tasks.isdecimal() and int(tasks) > 1:
        logger.warning(
            "SLURM_NTASKS=%s, but this process runs alone; for one rank a task, start it by srun "
            "--mpi=pmix (--mpi=pmi2 where MPI is MPICH) or by mpirun",
            tasks,
        )
