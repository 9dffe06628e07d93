"""What each rank sees of its launcher and of its machine."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from hvd_sign.core import kernels
from hvd_sign.core.launch import Placement, check_launcher
from hvd_sign.doctor.findings import FAILED, OK, WARNING, Check, Seen
from hvd_sign.doctor.networks import interfaces
from hvd_sign.transports.native import HostCores

MIB = 2**20
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED, GOOD_SHARED = 16 * MIB, 256 * MIB
"""Bytes free: for the buffers of MPI and NCCL; and of processes that load data."""
FILES_OF_A_RANK = 256
"""Descriptors without those to other ranks, of which each may take a few."""


def checks(environment: Mapping[str, str], place: Placement) -> list[Check]:
    """What every rank looks at.

    Args:
        environment: of this process.
        place: what launchers say of it.
    """
    return [
        Check("launcher", partial(launcher, environment, place)),
        Check("kernels", instruction_set),
        Check("cores", cores),
        Check("open files", partial(open_files, place)),
        Check("shared memory", shared_memory),
        Check("interfaces", partial(interfaces, environment, place)),
    ]


def launcher(environment: Mapping[str, str], place: Placement) -> Seen:
    """Who started this process, as what."""
    try:
        check_launcher(environment)
    except RuntimeError as error:
        what, _, remedy = str(error).partition("; ")
        return Seen(FAILED, what, remedy)
    if place.launcher is None:
        tasks = environment.get("SLURM_NTASKS", "")
        if tasks.isdecimal() and int(tasks) > 1:
            remedy = "start it by srun --mpi=pmix (--mpi=pmi2 where MPI is MPICH) or by mpirun"
            return Seen(WARNING, f"none, in an allocation of Slurm for {tasks} tasks", remedy)
        return Seen(OK, "none: one worker")
    told = (("rank", place.rank), ("of", place.size), ("local rank", place.local_rank))
    words = " ".join(f"{word} {number}" for word, number in told if number is not None)
    return Seen(OK, f"{place.launcher}: {words}")


def instruction_set() -> Seen:
    """Which kernels run."""
    chosen, known = kernels.implementation(), kernels.implementations()
    found = f"{chosen} (this machine has {', '.join(known)})"
    if chosen == "scalar" and len(known) > 1:
        return Seen(WARNING, found, "unset HVD_SIGN_KERNELS: the best one is taken by itself")
    return Seen(OK, found)


def cores() -> Seen:
    """How many cores this rank may use."""
    mine, all_of_them = len(HostCores.own().cores), os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    found = f"{mine} of {all_of_them}, OMP_NUM_THREADS={threads or 'unset'}"
    if threads.isdecimal() and int(threads) > mine:
        remedy = f"set OMP_NUM_THREADS to {mine} at most, or bind ranks to more cores: srun "
        return Seen(WARNING, found, f"{remedy}--cpus-per-task, mpirun --map-by slot:PE=N")
    return Seen(OK, found)


def open_files(place: Placement) -> Seen:
    """Whether a rank may open enough files and connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OF_A_RANK + 4 * (place.size or 1)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        limit = "no limit" if soft == resource.RLIM_INFINITY else f"{soft} at most"
        return Seen(OK, limit)
    where = "ulimit -n" if hard >= needed else "ulimit -n, which root has to allow"
    found = f"{soft} at most; {place.size or 1} ranks may need {needed}"
    return Seen(FAILED, found, f"{where}: raise it to {needed} or more where ranks start")


def shared_memory(folder: Path = SHARED_MEMORY) -> Seen:
    """Whether there is memory that the ranks of a node share."""
    remedy = (
        f"mount a larger tmpfs on {folder}; containers: docker run --shm-size=8g, or --ipc=host; "
        "apptainer has the host's"
    )
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        missing = "cannot be written" if folder.is_dir() else "is missing"
        return Seen(FAILED, f"{folder} {missing}", remedy)
    room = os.statvfs(folder)
    free, size = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    found = f"{folder}: {free // MIB} of {size // MIB} MiB free"
    if free >= GOOD_SHARED:
        return Seen(OK, found)
    return Seen(FAILED if free < LEAST_SHARED else WARNING, found, remedy)
