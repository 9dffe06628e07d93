"""How this process was started, by what launchers leave in the environment of those they start."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

logger = logging.getLogger("hvd_sign")

ELASTIC = "HOROVOD_ELASTIC"
"""The variable of horovodrun's elastic jobs, which end with fewer processes than they began."""


class Launcher(NamedTuple):
    """What a launcher tells to each process that it starts.

    Attributes:
        name: for messages.
        size: the variable that says how many it started.
        rank: the variable that says which of them this one is, where no variable says how many.
        mark: a variable that must be there too, where ``size`` alone may be anybody's.
    """

    name: str
    size: str = ""
    rank: str = ""
    mark: str = ""


LAUNCHERS = (
    Launcher("torchrun", "WORLD_SIZE", mark="TORCHELASTIC_RUN_ID"),
    Launcher("horovodrun", "HOROVOD_SIZE"),
    Launcher("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE"),
    Launcher("MPICH's mpiexec or srun --mpi=pmi2", "PMI_SIZE"),
    Launcher("MPICH's mpiexec", "MPI_LOCALNRANKS"),
    Launcher("a PMIx launcher", rank="PMIX_RANK"),
    Launcher("srun", "SLURM_STEP_NUM_TASKS"),
)
"""The inner ones first: mpirun starts its daemons by srun, whose variables its ranks inherit."""


class Started(NamedTuple):
    """What the innermost launcher says.

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
    for launcher in LAUNCHERS:
        if launcher.mark and launcher.mark not in environment:
            continue
        for variable, others in ((launcher.size, 0), (launcher.rank, 1)):
            value = environment.get(variable, "")
            # Of rank 0, which may be alone, nothing is known.
            if value.isdecimal() and int(value) > 0:
                return Started(launcher.name, variable, value, int(value) + others)
    return None


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
