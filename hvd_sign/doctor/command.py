"""The command: every rank looks, rank 0 prints what all of them found."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from types import FrameType
from typing import Any

from hvd_sign.core.launch import Placement, placement
from hvd_sign.doctor import machine, software
from hvd_sign.doctor.children import PROBE_SECONDS, SILENT, Child, ChildError, Probes
from hvd_sign.doctor.findings import FAILED, Finding, finding_of, look_at
from hvd_sign.doctor.ranks import CHOOSE_INTERFACE, NAMES, REACH, REPORT, START
from hvd_sign.doctor.report import any_failed, as_json, as_table, lines_of

FINALIZE_SECONDS = 3.0
"""How long MPI may take to end, when all has been said."""


LINGER_SECONDS = 3.0
"""How long a rank stays when ranks speak for themselves: its end may make a launcher end them."""

ENDED = "the launcher ended this rank"


class EndedError(BaseException):
    """The launcher ends this rank, since another one failed; no check may catch it."""


class Ranks:
    """What the ranks together find, as far as this one hears of it.

    Attributes:
        rank: MPI's number of this one; None: MPI has not started.
        size: how many ranks MPI counts.
        findings: of the checks that they make together.
        others: host and findings of other ranks, by rank; on rank 0.
        delivered: whether rank 0 has this one's findings.
    """

    def __init__(self) -> None:
        self.rank: int | None = None
        self.size: int | None = None
        self.findings: list[Finding] = []
        self.others: dict[int, Any] = {}
        self.delivered = False
        self._doing = START

    def hear(self, line: Mapping[str, Any]) -> None:
        """Takes in a line of ``hvd_sign.doctor.ranks``."""
        self._doing = line.get("doing", self._doing)
        self.rank = line.get("rank", self.rank)
        self.size = line.get("size", self.size)
        self.delivered = line.get("delivered", self.delivered)
        self.others |= {int(rank): told for rank, told in line.get("others", {}).items()}
        if "finding" in line:
            self.findings.append(finding_of(line["finding"]))
        for rank in line.get("silent", ()):
            self.findings.append(Finding(REPORT, FAILED, f"nothing comes from rank {rank}"))

    def complete(self, place: Placement) -> bool:
        """Whether rank 0 speaks for all."""
        size = self.size or place.size or 1
        return size == 1 or self.delivered or len(self.others) == size - 1

    def broken_off(self, error: ChildError) -> None:
        """Notes that no more will come."""
        remedy = {START: _remedy(error), REACH: CHOOSE_INTERFACE}.get(self._doing, "")
        self.findings.append(Finding(self._doing, FAILED, str(error), remedy))


def _remedy(error: ChildError) -> str:
    """What helps where MPI does not start, by its own words."""
    if str(error).startswith(ENDED):
        return "the lines of other ranks tell why"
    if "PMI version PMIx" in error.said:
        return "this MPI does not speak PMIx: srun --mpi=pmi2, or this MPI's own mpirun"
    if "PMI support" in error.said:
        return "srun --mpi=pmix, if `srun --mpi=list` has it; else mpirun"
    if "unable to reach" in error.said or str(error).startswith(SILENT):
        return CHOOSE_INTERFACE
    return "does `mpirun -np 2 python -m mpi4py.bench helloworld` run, started in the same way?"


def names() -> list[str]:
    """Of the checks that may be left out: all but whether ranks reach each other."""
    alone = machine.checks({}, Placement())
    installed = software.checks({}, Probes([]), list(software.TITLES))
    together = (name for name in NAMES if name != REACH)
    return [*(check.name for check in (*alone, *installed)), *together]


def run(*, document: bool, skip: Collection[str], seconds: float) -> int:
    """Looks at everything; prints it, on one rank.

    Args:
        document: as JSON, not as a table.
        skip: names of the checks that are not made.
        seconds: how long a rank is waited for.

    Returns:
        The exit status, which rank 0 tells: 1 if something has failed. The others' is 0, since
        launchers end all ranks as soon as one ends otherwise.
    """
    place = placement(os.environ)
    own: list[Finding] = []
    ranks = Ranks()
    child = None
    signal.signal(signal.SIGTERM, _end)
    try:
        if START not in skip:
            child = Child("hvd_sign.doctor.ranks", f"{seconds:g}", *skip)
        for finding in _alone(place, skip):
            own.append(finding)
        if child is not None:
            child.tell([finding.as_dict() for finding in own])
            for line in child.lines(PROBE_SECONDS):
                ranks.hear(line)
                if line.get("done"):
                    break
    except ChildError as error:
        ranks.broken_off(error)
    except EndedError:
        if child is not None and all(finding.state != FAILED for finding in ranks.findings):
            ranks.broken_off(ChildError(ENDED, child.said()))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    status = 0 if ranks.delivered else _say(place, own, ranks, document=document)
    if not ranks.complete(place):
        time.sleep(LINGER_SECONDS)
    if child is not None:
        child.end(FINALIZE_SECONDS)
    return status


def _end(number: int, frame: FrameType | None) -> None:
    raise EndedError


def _alone(place: Placement, skip: Collection[str]) -> Iterator[Finding]:
    """What this rank finds by itself; one of each node looks at what is installed."""
    checks = machine.checks(os.environ, place)
    probes = None
    if place.local_rank in (0, None):
        probes = Probes(software.probed(skip))
        checks += software.checks(os.environ, probes, software.frameworks())
    try:
        for name, look in checks:
            yield look_at(name, look, skip)
    finally:
        if probes is not None:
            probes.end()


def _say(place: Placement, own: list[Finding], ranks: Ranks, *, document: bool) -> int:
    """Prints the report on rank 0; on others, which have not been heard there, what has failed."""
    size = ranks.size or place.size or 1
    rank = (place.rank if ranks.size in (None, 1) else ranks.rank) or 0
    host = socket.gethostname()
    lines = lines_of(rank, [*own, *ranks.findings], ranks.others)
    if rank == 0:
        print((as_json if document else as_table)(lines, rank, size, host), flush=True)
        return int(any_failed(lines))
    copy = ranks.size == 1  # rank 0 is one, too, and says so
    for finding, _ in lines:
        if finding.state == FAILED and not copy:
            said = f"hvd-sign doctor: rank {rank} on {host}: {finding.check}: {finding.found}"
            print(said, file=sys.stderr, flush=True)
    return 0
