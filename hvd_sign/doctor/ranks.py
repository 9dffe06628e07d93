"""The ranks together: whether MPI starts, who reaches whom, clocks, a vote, the link.

``python -m hvd_sign.doctor.ranks SECONDS SKIP`` takes its parent's place among the ranks, since MPI
may end a process or hang. It says each finding as a line of JSON, hands what the parent found to
rank 0, and there says what all others found.

Until it is known that all ranks reach each other, messages go from one to one, with a time limit;
then come collectives, as a training makes them.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, TextIO

import numpy as np

from hvd_sign._version import __version__
from hvd_sign.core.launch import check_launcher, check_not_a_copy, placement
from hvd_sign.core.process import load_mpi, mpi_name
from hvd_sign.doctor.children import PROBE_SECONDS
from hvd_sign.doctor.findings import (
    FAILED,
    OK,
    SKIPPED,
    WARNING,
    Finding,
    Seen,
    look_at,
    numbered,
)
from hvd_sign.frontend.numpy_api import allreduce
from hvd_sign.runtime import measuring
from hvd_sign.runtime.lifecycle import runtime, shutdown
from hvd_sign.transports.mpi import MpiMailbox
from hvd_sign.transports.nodes import NodeMap, names_of_nodes

START, RANKS, REACH, NODES, SAME, CLOCKS, VOTE, LINK = (
    "MPI start",
    "ranks",
    "reach",
    "nodes",
    "same software",
    "clocks",
    "vote",
    "link",
)
NAMES = (START, RANKS, REACH, NODES, SAME, CLOCKS, VOTE, LINK)
"""Of the checks that this module makes."""
CHOOSE_INTERFACE = (
    "name the interface that reaches the other nodes: OMPI_MCA_btl_tcp_if_include=NAME, or "
    "INTERFACE=NAME in slurm/ (ip -br addr shows them); open all TCP ports between the nodes"
)
NAP = 1e-3
FIRST_TAG = 100
REPORT = "report"
COORDINATES = 20_000
"""Of the vote: more than travel with the agreement to vote, so that the exchange itself runs."""
LINK_SECONDS = 1.0
SLOW = 12.5e6
"""Bytes/s of a rank: what Ethernet of 100 Mbit/s has."""
UNSEEN = 1e12
"""Bytes/s that are beyond what messages of this size can tell."""
FAR = 0.1
"""Seconds between two clocks, from which on merged timelines mislead."""
PINGS = 10


class Mail:
    """Small messages from rank to rank, each kind waited for so long at most.

    Args:
        world: of all ranks; nothing else may use its tags from FIRST_TAG on.
        seconds: how long a rank is waited for.
    """

    def __init__(self, world: Any, seconds: float) -> None:
        self._world = world
        self._mailboxes: list[MpiMailbox] = []  # what never left must stay
        self.seconds = seconds
        self.rank: int = world.Get_rank()
        self.others = [rank for rank in range(world.Get_size()) if rank != self.rank]

    def exchange(
        self, message: Any, to: Collection[int], of: Collection[int], more: float = 0.0
    ) -> dict[int, Any]:
        """Sends a message to some ranks and waits for one of some; all ranks come here in turn.

        Args:
            message: what is sent.
            to: to whom.
            of: of whom one is waited for.
            more: seconds beyond those that a rank is waited for.

        Returns:
            What has come, by rank.
        """
        mailbox = MpiMailbox(self._world, FIRST_TAG + len(self._mailboxes))
        self._mailboxes.append(mailbox)
        for rank in to:
            # Open MPI's first message to an unreachable rank fails; others' words are awaited.
            with suppress(RuntimeError):
                mailbox.send((self.rank, message), rank)
        come: dict[int, Any] = {}
        deadline = time.monotonic() + self.seconds + more
        while not (mailbox.sent() and come.keys() >= set(of)) and time.monotonic() < deadline:
            come |= dict(mailbox.receive())
            time.sleep(NAP)
        return come


class Record:
    """What this process finds; it hands it to its parent at once, line by line.

    Args:
        out: where the parent reads.
        skip: names of the checks that are not made.
    """

    def __init__(self, out: TextIO, skip: Collection[str]) -> None:
        self._out = out
        self._skip = skip
        self.findings: list[Finding] = []

    def say(self, **line: Any) -> None:
        """Hands the parent a line."""
        print(json.dumps(line), file=self._out, flush=True)

    def look(self, name: str, look: Callable[[], Seen], seconds: float) -> Finding:
        """Makes a check, which may take so long before the parent gives this process up."""
        self.say(within=seconds, doing=name)
        return self.note(look_at(name, look, self._skip))

    def note(self, finding: Finding) -> Finding:
        """Keeps and says what was found."""
        self.findings.append(finding)
        self.say(finding=finding.as_dict())
        return finding


def main(seconds: float, skip: Collection[str]) -> None:
    """Makes the checks; the standard input holds the parent's findings, once it has them.

    Args:
        seconds: how long a rank is waited for.
        skip: names of the checks that are not made.
    """
    for traces in ("HVD_SIGN_TIMELINE", "HVD_SIGN_RECORD"):
        os.environ.pop(traces, None)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs elsewhere
    record = Record(out, skip)
    if record.look(START, start, seconds).state == OK:
        of_all(record, seconds)
    record.say(done=True)


def of_all(record: Record, seconds: float) -> None:
    """Makes the checks for which MPI has to run. Arguments as above."""
    world = load_mpi().COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    record.say(rank=rank, size=size)
    counted = record.look(RANKS, lambda: ranks(rank, size), seconds)
    if size == 1:
        if counted.state == OK:
            remedy = "to look at several, start it as the training: mpirun -np 4 hvd-sign doctor"
            record.note(Finding(REACH, SKIPPED, "one rank", remedy))
        return
    mail = Mail(world, seconds)
    heard: list[int] = []
    record.look(REACH, lambda: reach(mail, heard), 2 * seconds)
    record.say(within=4 * seconds, doing=REACH)
    if all_reach_all(mail, heard):
        for name, look in (
            (NODES, lambda: nodes(world)),
            (SAME, lambda: same_software(world)),
            (CLOCKS, lambda: clocks(world)),
            (VOTE, lambda: vote(rank, size)),
            (LINK, lambda: link(world)),
        ):
            record.look(name, look, seconds + LINK_SECONDS)
        shutdown()
    else:
        for name in NAMES[NAMES.index(REACH) + 1 :]:
            record.note(Finding(name, SKIPPED, "not all ranks reach each other"))
    record.say(within=PROBE_SECONDS + 3 * seconds, doing=REPORT)
    report(record, mail, heard)


def start() -> Seen:
    """Starts MPI with the thread level that votes need."""
    try:
        check_launcher()
    except RuntimeError:
        return Seen(SKIPPED, "votes need another launcher")
    mpi = load_mpi()
    return Seen(OK, f"{mpi_name(mpi.Get_library_version())}, MPI_THREAD_MULTIPLE")


def ranks(rank: int, size: int) -> Seen:
    """Whether MPI counts as the launcher does."""
    if size == 1 and os.environ.get("HOROVOD_CONTROLLER", "").lower() == "gloo":
        return Seen(SKIPPED, "Horovod's Gloo, over which votes then travel, is not looked at here")
    check_not_a_copy(size, "MPI")
    told = placement(os.environ)
    if told.size is not None and size < told.size:
        raise RuntimeError(f"{told.launcher} started {told.size} processes, but MPI sees {size}")
    if told.rank is not None and size > 1 and rank != told.rank:
        raise RuntimeError(f"{told.launcher} says rank {told.rank}, but MPI says {rank}")
    return Seen(OK, f"{size}, as the launcher says" if told.launcher else f"{size}")


def reach(mail: Mail, heard: list[int]) -> Seen:
    """Whether this rank hears every other one; fills in those that it hears."""
    heard += mail.exchange(None, mail.others, mail.others)
    deaf = sorted(set(mail.others) - set(heard))
    if not deaf:
        return Seen(OK, "every rank hears every other one")
    return Seen(FAILED, f"nothing comes from {numbered(deaf)}", CHOOSE_INTERFACE)


def all_reach_all(mail: Mail, heard: list[int]) -> bool:
    """Whether rank 0 has heard from all ranks that they hear all; the same on all that hear it."""
    everyone = sorted(heard) == mail.others
    if mail.rank == 0:
        told = mail.exchange(None, [], heard, mail.seconds)
        everyone = everyone and all(told.get(rank, False) for rank in mail.others)
        mail.exchange(everyone, heard, [])
        return everyone
    mail.exchange(everyone, [0], [])
    return bool(mail.exchange(None, [], [0], 2 * mail.seconds).get(0, False))


def nodes(world: Any) -> Seen:
    """Which ranks share a node, and whether all nodes have equally many."""
    found = NodeMap(names_of_nodes(world), world.Get_rank())
    hosts = world.allgather(socket.gethostname())
    sizes = [len(row) for row in found.members]
    words = ", ".join(f"{hosts[row[0]]}: {numbered(row)}" for row in found.members[:8])
    more = ", ..." if len(sizes) > 8 else ""
    if len(set(sizes)) > 1:
        remedy = "give all nodes equally many ranks: exchange='hierarchical' counts nodes"
        return Seen(WARNING, f"{len(sizes)} nodes of unequal size; {words}{more}", remedy)
    return Seen(OK, f"{words}{more}")


def same_software(world: Any) -> Seen:
    """Whether all ranks run the same versions."""
    mine = {
        "hvd_sign": __version__,
        "Python": sys.version.split()[0],
        "numpy": np.__version__,
        "MPI": mpi_name(load_mpi().Get_library_version()),
    }
    everywhere = world.allgather(mine)
    for name, here in everywhere[0].items():
        other = [rank for rank, theirs in enumerate(everywhere) if theirs[name] != here]
        if other:
            there = everywhere[other[0]][name]
            remedy = "install the same on all nodes, or share one environment"
            return Seen(FAILED, f"{name} {here} on rank 0, {there} on {numbered(other)}", remedy)
    return Seen(OK, "the same versions on all ranks")


def clocks(world: Any) -> Seen:
    """How far each rank's clock is from rank 0's, by the quickest of some round trips."""
    offsets = []
    for other in range(1, world.Get_size()):
        if world.Get_rank() == other:
            for _ in range(PINGS):
                world.recv(source=0)
                world.send(time.time(), 0)
        elif world.Get_rank() == 0:
            trips = []
            for _ in range(PINGS):
                sent = time.time()
                world.send(None, other)
                there = world.recv(source=other)
                back = time.time()
                trips.append((back - sent, there - (sent + back) / 2))
            offsets.append((abs(min(trips)[1]), other))
    off, rank = world.bcast(max(offsets, default=None))
    found = f"{1e3 * off:.1f} ms apart at most (rank {rank} from rank 0)"
    if off > FAR:
        return Seen(WARNING, found, "let NTP or chrony set the clocks of all nodes")
    return Seen(OK, found)


def vote(rank: int, size: int) -> Seen:
    """Votes whose verdict is known: of three ranks or more, rank 0 is against it."""
    decided = np.where(np.arange(COORDINATES) % 2, 1.0, -1.0).astype(np.float32)
    mine = -decided if rank == 0 and size > 2 else decided
    for exchange in ("sharded", "allgather"):
        verdict = allreduce(mine, exchange=exchange, name=f"doctor, {exchange}", step=0)
        wrong = int(np.count_nonzero(verdict != decided))
        if wrong:
            raise RuntimeError(f"{exchange}: {wrong} of {COORDINATES} coordinates are wrong")
    return Seen(OK, f"right, of {COORDINATES} coordinates on {size} ranks")


def link(world: Any) -> Seen:
    """Latency and bandwidth, as ``hvd-sign bench-link`` measures them; nothing is written."""
    transport = runtime().transport(world.Dup())
    model = measuring.measure(transport, seconds=LINK_SECONDS)
    transport.close(release=True)
    rate = f"{model.bandwidth / 1e6:.0f} MB/s" if model.bandwidth < UNSEEN else "no limit seen"
    found = f"{1e6 * model.latency:.0f} us a message, {rate} a rank"
    if model.node_bandwidth is not None and model.local_bandwidth is not None:
        inside, between = model.local_bandwidth / 1e6, model.node_bandwidth / 1e6
        found += f" ({inside:.0f} inside a node, {between:.0f} between nodes)"
    if model.bandwidth < SLOW:
        remedy = "is this the fast network? see Networks in slurm/README.md"
        return Seen(WARNING, found, remedy)
    return Seen(OK, found)


def report(record: Record, mail: Mail, heard: Collection[int]) -> None:
    """Brings the findings of the other ranks to rank 0, which confirms that it has them."""
    theirs = json.load(sys.stdin)
    own = [*theirs, *(finding.as_dict() for finding in record.findings)]
    if mail.rank == 0:
        come = mail.exchange(None, [], heard, PROBE_SECONDS)
        mail.exchange(None, come, [])
        record.say(others=come, silent=sorted(set(heard) - set(come)))
        return
    mail.exchange({"host": socket.gethostname(), "findings": own}, [0], [])
    answers = mail.exchange(None, [], [0] if 0 in heard else [], PROBE_SECONDS)
    record.say(delivered=0 in answers)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
