"""How voters agree on which ad-hoc votes run, and on what they are."""

from __future__ import annotations

import io
import pickle
from collections import Counter, deque
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

import numpy as np

from hvd_sign.agreement import JOINED, REFUSED, WAIVED, disagreement, ranks_text, refusal, title
from hvd_sign.transports.base import Buffer, Transport
from hvd_sign.transports.horovod import HorovodTransport
from hvd_sign.transports.mpi import MpiTransport


class News(NamedTuple):
    """What a voter tells the others.

    Attributes:
        voter: its number.
        name: what it is ready for; None: it has joined.
        claim: what it claims of it; or REFUSED: its call failed, and it waits for nothing.
        joins: how many joins it has come back from.
        number: how many votes of that name it has seen; it may have forgotten some.
        ballot: of a vote that is held with the agreement, as the vote of that number.
    """

    voter: int
    name: str | None
    claim: dict[str, Any]
    joins: int
    number: int = 0
    ballot: bytes | None = None


class Decision(NamedTuple):
    """What all voters are ready for.

    Attributes:
        name: of the vote.
        error: the sentence that says why it cannot run, if it cannot.
        number: of the vote: the largest of the voters'.
        verdict: of a vote that was held with the agreement; None where their numbers differ.
    """

    name: str
    error: str | None
    number: int
    verdict: bytes | None = None


Tally = Callable[[str, list[bytes]], bytes]
"""The verdict of the vote of this name, from all voters' ballots."""


class Order(Protocol):
    """Agreement of the voters on what runs.

    Attributes:
        in_order: votes run one at a time, in the same order on all ranks; else side by side.
        can_leave: a voter may join.
        carries: ballots may travel with the news, to be tallied by voter 0.
        joins: how often all ranks have joined and come back.
    """

    in_order: bool
    can_leave: bool
    carries: bool
    joins: int

    def listen(self, news: Sequence[News]) -> list[Decision]:
        """Tells what this voter is newly ready for, and hears what all are ready for."""
        ...

    def owes(self) -> bool:
        """Whether other voters have yet to hear that this one's call was refused."""
        ...

    def transport_for(self, name: str) -> Transport:
        """The transport of the vote that is about to run."""
        ...


class LoneOrder:
    """A lone voter runs whatever it asks for."""

    in_order = True
    can_leave = True
    carries = False

    def __init__(self, transport: Transport) -> None:
        self.joins = 0
        self._transport = transport

    def listen(self, news: Sequence[News]) -> list[Decision]:
        """Everything, as asked for."""
        return [
            Decision(item.name, None, item.number)
            for item in news
            if item.name is not None and REFUSED not in item.claim
        ]

    def owes(self) -> bool:
        """There are no others."""
        return False

    def transport_for(self, name: str) -> Transport:
        """The stream's own."""
        return self._transport


class MailboxOrder:
    """Voter 0 hears from each voter which names it is ready for, and tells all what to run.

    A vote can only run once voter 0 itself is ready for it, so nobody has to listen while it has
    nothing to vote on.

    Args:
        transport: the votes'.
        tally: asked on voter 0.
    """

    in_order = True
    can_leave = True
    carries = True

    def __init__(self, transport: MpiTransport, tally: Tally) -> None:
        self.joins = 0
        self._tally = tally
        self._mailbox = transport.mailbox()
        self._transport = transport
        # A voter whose call was refused may be ready again before the others' calls have come.
        self._ready: dict[str, dict[int, deque[News]]] = {}
        self._asked_in: dict[str, int] = {}
        self._joined: dict[int, int] = {}

    def listen(self, news: Sequence[News]) -> list[Decision]:
        """Asks voter 0, or answers for it."""
        if self._transport.rank != 0:
            for item in news:
                self._mailbox.send(item, 0)
            return self._mailbox.receive()
        for item in [*news, *self._mailbox.receive()]:
            if item.name is None:
                self._joined[item.voter] = item.joins + 1
            else:
                voters = self._ready.setdefault(item.name, {})
                voters.setdefault(item.voter, deque()).append(item)
                self._asked_in[item.name] = max(item.joins, self._asked_in.get(item.name, 0))
        mine = []
        for name, error in self._decided():
            taken = self._take(name)
            number = max(item.number for item in taken)
            ballots = [
                item.ballot for item in taken if item.ballot is not None and item.number == number
            ]
            counts = error is None and len(ballots) == self._transport.size
            verdict = self._tally(name, ballots) if counts else None
            decision = Decision(name, error, number, verdict)
            for item in taken:
                if REFUSED in item.claim:
                    continue
                if item.voter == 0:
                    mine.append(decision)
                else:
                    self._mailbox.send(decision, item.voter)
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
            # Who asked may have come back from a join that others are still coming back from.
            asked_in = self._asked_in[name]
            gone = sorted(voter for voter, joins in self._joined.items() if joins > asked_in)
            complete = len(claims) == self._transport.size
            if not complete and all(voter in claims for voter in gone):
                continue
            who = title(name, (calls[0].claim for calls in claims.values()))
            if complete:
                ordered = [claims[voter][0].claim for voter in range(self._transport.size)]
                decided.append((name, refusal(who, ordered) or disagreement(who, ordered)))
            elif all(calls[0].claim.get(JOINED) == WAIVED for calls in claims.values()):
                decided.append((name, None))
            else:
                sentence = (
                    f"{who}: {ranks_text(gone)} called join(), after which only the votes of a "
                    "DistributedOptimizer are served"
                )
                decided.append((name, sentence))
        return decided

    def _take(self, name: str) -> list[News]:
        """Ends everyone's first call of ``name``, and returns them in order of voters."""
        claims = self._ready[name]
        first = [claims[voter].popleft() for voter in sorted(claims)]
        self._ready[name] = {voter: calls for voter, calls in claims.items() if calls}
        if not self._ready[name]:
            del self._ready[name], self._asked_in[name]
        return first


NUMBER_BYTES = 8


class NamedOrder:
    """Horovod's own matching by name: a claim is gathered under the vote's name, then it runs.

    How often a name was asked for is part of its operations' names, and so is kept for good: some
    hundred bytes a name.
    """

    in_order = False
    can_leave = False
    carries = False

    def __init__(self, transport: HorovodTransport) -> None:
        self.joins = 0
        self._transport = transport
        self._asked: Counter[str] = Counter()
        self._claims: dict[tuple[str, int], dict[str, Any]] = {}
        self._digests: dict[tuple[str, int], Any] = {}
        self._differing: dict[tuple[str, int], tuple[Any, int]] = {}

    def listen(self, news: Sequence[News]) -> list[Decision]:
        """Gathers digests of claims; where they differ, the claims."""
        collectives = self._transport.collectives
        for _, name, claim, _, number, _ in news:
            if name is not None:
                self._asked[name] += 1
                call = name, self._asked[name]
                self._claims[call] = claim
                digest = sha256(pickle.dumps(claim)).digest()
                told = _bytes(number.to_bytes(NUMBER_BYTES, "little") + digest)
                self._digests[call] = collectives.allgather(told, self._prefix(call, "claim"))
        decided: list[Decision] = []
        for call, handle in list(self._digests.items()):
            if collectives.poll(handle):
                del self._digests[call]
                told = collectives.result(handle).reshape(self._transport.size, -1)
                numbers, digests = told[:, :NUMBER_BYTES], told[:, NUMBER_BYTES:]
                number = max(int.from_bytes(row.tobytes(), "little") for row in numbers)
                if (digests == digests[0]).all():
                    if REFUSED not in self._claims.pop(call):
                        decided.append(Decision(call[0], None, number))
                else:
                    packed = _bytes(pickle.dumps(self._claims[call]))
                    whole = self._prefix(call, "differs")
                    self._differing[call] = collectives.allgather(packed, whole), number
        for call, (handle, number) in list(self._differing.items()):
            if collectives.poll(handle):
                del self._differing[call]
                claims = _unpickle_all(collectives.result(handle))
                if REFUSED not in self._claims.pop(call):
                    who = title(call[0], claims)
                    error = refusal(who, claims) or disagreement(who, claims)
                    decided.append(Decision(call[0], error, number))
        return decided

    def owes(self) -> bool:
        """The refused call's part in the others' gathering."""
        return any(REFUSED in claim for claim in self._claims.values())

    def transport_for(self, name: str) -> Transport:
        """One whose operations bear the vote's name, and the number of times it was asked for."""
        whole = self._transport
        prefix = self._prefix((name, self._asked[name]), "vote")
        return HorovodTransport(whole.collectives, whole.rank, whole.size, prefix)

    def _prefix(self, call: tuple[str, int], what: str) -> str:
        name, number = call
        return f"{self._transport.prefix}.{what}.{name}.{number}"


def make_order(transport: Transport, tally: Tally) -> Order:
    """How the voters of a transport agree; ``tally`` is asked for votes held meanwhile."""
    if isinstance(transport, MpiTransport):
        return MailboxOrder(transport, tally)
    if isinstance(transport, HorovodTransport):
        return NamedOrder(transport)
    return LoneOrder(transport)


def _bytes(data: bytes) -> Buffer:
    return np.frombuffer(bytearray(data), np.uint8)


def _unpickle_all(packed: Any) -> list[Any]:
    """Objects pickled one after another."""
    stream = io.BytesIO(packed.tobytes())
    objects = []
    while stream.tell() < len(packed):
        objects.append(pickle.load(stream))
    return objects
