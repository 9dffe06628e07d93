"""The coordinator: voters agree, by requests and responses, on which named operations run."""

from __future__ import annotations

import io
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

import numpy as np

from hvd_sign.core.agreement import (
    ELSEWHERE,
    JOINED,
    REFUSED,
    WAIVED,
    disagreement,
    ranks_text,
    refusal,
    title,
)
from hvd_sign.engine.elsewhere import SECOND
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Buffer, Mailbox, NamedCollectives


class Request(NamedTuple):
    """What a voter tells the coordinator.

    Attributes:
        rank: its number.
        name: the operation that it is ready for; None: it has joined.
        claim: what it claims of it; or REFUSED: its call failed, and it waits for nothing; or
            ELSEWHERE: it has waited for another second for that operation of another library's,
            or for None of them any more.
        joins: how many joins it has come back from.
        number: how many votes of that name it has seen; it may have forgotten some.
        ballot: of a vote that is held with the agreement, as the vote of that number.
    """

    rank: int
    name: str | None
    claim: dict[str, Any]
    joins: int
    number: int = 0
    ballot: bytes | None = None


class Response(NamedTuple):
    """What all voters are ready for.

    Attributes:
        name: of the operation.
        error: the sentence that says why it cannot run, if it cannot.
        number: of the vote: the largest of the voters'.
        verdict: of a vote that was held with the agreement; None where their numbers differ.
        clash: what other ranks wait for in another library under that name.
    """

    name: str
    error: str | None
    number: int
    verdict: bytes | None = None
    clash: str | None = None


TOLD_IN_VAIN = 3
"""How often voters tell of their waiting elsewhere before it is believed to be in vain: who has
come out of it tells no more, but what it told may be on its way."""

Tally = Callable[[str, list[bytes]], bytes]
"""The verdict of the vote of this name, from all voters' ballots."""


class Coordinator(Protocol):
    """Agreement of the voters on what runs.

    Attributes:
        in_order: votes run one at a time, in the same order on all ranks; else side by side.
        can_leave: a voter may join.
        carries_ballots: ballots may travel with the requests, to be tallied by voter 0.
        joins: how often all ranks have joined and come back.
    """

    in_order: bool
    can_leave: bool
    carries_ballots: bool
    joins: int

    def negotiate(self, requests: Sequence[Request]) -> list[Response]:
        """Sends what this voter is newly ready for; returns what all are ready for."""
        ...

    def owes(self) -> bool:
        """Whether other voters have yet to hear that this one's call was refused."""
        ...

    def transport_for(self, name: str) -> Transport:
        """The transport of the vote that is about to run."""
        ...


class _Waiting(NamedTuple):
    """That a voter waits for an operation of another library's.

    Attributes:
        op: which.
        times: how often it has told so while all others were waiting too.
        heard: ``time.monotonic()`` when it last did.
    """

    op: str
    times: int
    heard: float


class LoneCoordinator:
    """A lone voter runs whatever it requests."""

    in_order = True
    can_leave = True
    carries_ballots = False

    def __init__(self, transport: Transport) -> None:
        self.joins = 0
        self._transport = transport

    def negotiate(self, requests: Sequence[Request]) -> list[Response]:
        """Everything, as requested."""
        return [
            Response(request.name, None, request.number)
            for request in requests
            if request.name is not None and REFUSED not in request.claim
        ]

    def owes(self) -> bool:
        """There are no others."""
        return False

    def transport_for(self, name: str) -> Transport:
        """The stream's own."""
        return self._transport


class MailboxCoordinator:
    """Voter 0 hears from each voter which names it is ready for, and tells all what to run.

    A vote can only run once voter 0 itself is ready for it, so nobody has to listen while it has
    nothing to vote on.

    Args:
        transport: the votes'.
        mailbox: of the voters.
        tally: asked on voter 0.
    """

    in_order = True
    can_leave = True
    carries_ballots = True

    def __init__(self, transport: Transport, mailbox: Mailbox, tally: Tally) -> None:
        self.joins = 0
        self._tally = tally
        self._mailbox = mailbox
        self._transport = transport
        # A voter whose call was refused may be ready again before the others' calls have come.
        self._ready: dict[str, dict[int, deque[Request]]] = {}
        self._requested_in: dict[str, int] = {}
        self._joined: dict[int, int] = {}
        self._elsewhere: dict[str, dict[int, _Waiting]] = {}

    def negotiate(self, requests: Sequence[Request]) -> list[Response]:
        """Asks voter 0, or answers for it."""
        if self._transport.rank != 0:
            for request in requests:
                self._mailbox.send(request, 0)
            return self._mailbox.receive()
        for request in [*requests, *self._mailbox.receive()]:
            if request.name is None:
                self._joined[request.rank] = request.joins + 1
            elif ELSEWHERE in request.claim:
                self._hear_of_waiting(request.name, request.rank, request.claim[ELSEWHERE])
            else:
                voters = self._ready.setdefault(request.name, {})
                voters.setdefault(request.rank, deque()).append(request)
                self._requested_in[request.name] = max(
                    request.joins, self._requested_in.get(request.name, 0)
                )
        mine = []
        for name, error in self._decided():
            taken = self._take(name)
            number = max(request.number for request in taken)
            ballots = [
                request.ballot
                for request in taken
                if request.ballot is not None and request.number == number
            ]
            counts = error is None and len(ballots) == self._transport.size
            verdict = self._tally(name, ballots) if counts else None
            waits = self._elsewhere.pop(name, {})
            clash = None if error is None else next((w.op for w in waits.values()), None)
            response = Response(name, error, number, verdict, clash)
            for request in taken:
                if REFUSED in request.claim:
                    continue
                if request.rank == 0:
                    mine.append(response)
                else:
                    self._mailbox.send(response, request.rank)
        return mine

    def owes(self) -> bool:
        """Voter 0 alone answers others."""
        return any(REFUSED in claims[0][0].claim for claims in self._ready.values() if 0 in claims)

    def transport_for(self, name: str) -> Transport:
        """The stream's own: all voters run the same vote at a time."""
        return self._transport

    def _decided(self) -> list[tuple[str, str | None]]:
        """Names that all voters are ready for, or will never be."""
        decided = []
        for name, claims in self._ready.items():
            # Who requests may have come back from a join that others are still coming back from.
            requested_in = self._requested_in[name]
            gone = sorted(voter for voter, joins in self._joined.items() if joins > requested_in)
            complete = len(claims) == self._transport.size
            waits = self._elsewhere.get(name, {})
            in_vain = all(wait.times >= TOLD_IN_VAIN for wait in waits.values())
            if waits and in_vain and not complete:
                decided.append((name, self._clash(name, claims)))
                continue
            if not complete and all(voter in claims for voter in gone):
                continue
            who = title(name, (queue[0].claim for queue in claims.values()))
            if complete:
                ordered = [claims[voter][0].claim for voter in range(self._transport.size)]
                decided.append((name, refusal(who, ordered) or disagreement(who, ordered)))
            elif all(queue[0].claim.get(JOINED) == WAIVED for queue in claims.values()):
                decided.append((name, None))
            else:
                sentence = (
                    f"{who}: {ranks_text(gone)} called join(), after which only the votes of a "
                    "DistributedOptimizer are served"
                )
                decided.append((name, sentence))
        return decided

    def _hear_of_waiting(self, name: str, voter: int, op: str | None) -> None:
        """Counts how often each has told that it waits elsewhere while all others wait too."""
        waits = self._elsewhere.setdefault(name, {})
        now = time.monotonic()
        if op is None:
            waits.pop(voter, None)
        elif voter not in waits:
            waits[voter] = _Waiting(op, 0, now)
        elif now - waits[voter].heard > SECOND / 2:  # else it has lain here, and may be over
            waits[voter] = _Waiting(op, waits[voter].times + 1, now)
        here = self._ready.get(name, {})
        if not here or len(here.keys() | waits.keys()) < self._transport.size:
            self._elsewhere[name] = {who: wait._replace(times=0) for who, wait in waits.items()}
        if not waits:
            del self._elsewhere[name]

    def _clash(self, name: str, claims: dict[int, deque[Request]]) -> str | None:
        ops = {voter: wait.op for voter, wait in self._elsewhere[name].items()}
        ops |= {voter: queue[0].claim.get("op", "none") for voter, queue in claims.items()}
        who = title(name, (queue[0].claim for queue in claims.values()))
        return disagreement(who, [{"op": ops[voter]} for voter in sorted(ops)])

    def _take(self, name: str) -> list[Request]:
        """Ends everyone's first request of ``name``, and returns them in order of voters."""
        claims = self._ready[name]
        first = [claims[voter].popleft() for voter in sorted(claims)]
        self._ready[name] = {voter: queue for voter, queue in claims.items() if queue}
        if not self._ready[name]:
            del self._ready[name], self._requested_in[name]
        return first


NUMBER_BYTES = 8


class NamedCoordinator:
    """Horovod's own matching by name: a claim is gathered under the vote's name, then it runs.

    How often a name was requested is part of its operations' names, and so is kept for good: some
    hundred bytes a name.
    """

    in_order = False
    can_leave = False
    carries_ballots = False

    def __init__(self, transport: Transport, collectives: NamedCollectives) -> None:
        self.joins = 0
        self._transport = transport
        self._collectives = collectives
        self._requested: Counter[str] = Counter()
        self._claims: dict[tuple[str, int], dict[str, Any]] = {}
        self._digests: dict[tuple[str, int], Any] = {}
        self._differing: dict[tuple[str, int], tuple[Any, int]] = {}

    def negotiate(self, requests: Sequence[Request]) -> list[Response]:
        """Gathers digests of claims; where they differ, the claims."""
        collectives = self._collectives
        for _, name, claim, _, number, _ in requests:
            if name is not None:
                self._requested[name] += 1
                key = name, self._requested[name]
                self._claims[key] = claim
                digest = sha256(pickle.dumps(claim)).digest()
                told = _bytes(number.to_bytes(NUMBER_BYTES, "little") + digest)
                self._digests[key] = collectives.allgather(told, self._prefix(key, "claim"))
        decided: list[Response] = []
        for key, handle in list(self._digests.items()):
            if collectives.poll(handle):
                del self._digests[key]
                told = collectives.result(handle).reshape(self._transport.size, -1)
                numbers, digests = told[:, :NUMBER_BYTES], told[:, NUMBER_BYTES:]
                number = max(int.from_bytes(row.tobytes(), "little") for row in numbers)
                if (digests == digests[0]).all():
                    if REFUSED not in self._claims.pop(key):
                        decided.append(Response(key[0], None, number))
                else:
                    packed = _bytes(pickle.dumps(self._claims[key]))
                    whole = self._prefix(key, "differs")
                    self._differing[key] = collectives.allgather(packed, whole), number
        for key, (handle, number) in list(self._differing.items()):
            if collectives.poll(handle):
                del self._differing[key]
                claims = _unpickle_all(collectives.result(handle))
                if REFUSED not in self._claims.pop(key):
                    who = title(key[0], claims)
                    error = refusal(who, claims) or disagreement(who, claims)
                    decided.append(Response(key[0], error, number))
        return decided

    def owes(self) -> bool:
        """The refused call's part in the others' gathering."""
        return any(REFUSED in claim for claim in self._claims.values())

    def transport_for(self, name: str) -> Transport:
        """One whose operations bear the vote's name, and the number of times it was requested."""
        return self._transport.named(f"vote.{name}.{self._requested[name]}")

    def _prefix(self, key: tuple[str, int], what: str) -> str:
        name, number = key
        return f"{self._transport.prefix}.{what}.{name}.{number}"


def make_coordinator(transport: Transport, tally: Tally) -> Coordinator:
    """How the voters of a transport agree; ``tally`` is asked for votes held meanwhile."""
    if transport.size == 1:
        return LoneCoordinator(transport)
    if transport.collectives is not None:
        return NamedCoordinator(transport, transport.collectives)
    mailbox = transport.mailbox()
    if mailbox is not None:
        return MailboxCoordinator(transport, mailbox, tally)
    raise ValueError(
        f"transport: {type(transport).__name__} has neither a mailbox nor named collectives, by "
        "which voters could agree on what runs"
    )


def _bytes(data: bytes) -> Buffer:
    return np.frombuffer(bytearray(data), np.uint8)


def _unpickle_all(packed: Any) -> list[Any]:
    """Objects pickled one after another."""
    stream = io.BytesIO(packed.tobytes())
    objects = []
    while stream.tell() < len(packed):
        objects.append(pickle.load(stream))
    return objects
