"""How voters agree on which ad-hoc votes run, and on what they are."""

from __future__ import annotations

import io
import pickle
from collections import Counter, deque
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Protocol

import numpy as np

from hvd_sign.agreement import REFUSED, disagreement, ranks_text, refusal
from hvd_sign.transports.base import Buffer, Transport
from hvd_sign.transports.horovod import HorovodTransport
from hvd_sign.transports.mpi import MpiTransport

News = tuple[int, str | None, dict[str, Any], int]
"""A voter, the name it is ready for (None: it has joined), what it claims of it (or REFUSED: its
call failed, and it waits for nothing), and how many joins it has come back from."""


class Order(Protocol):
    """Agreement of the voters on what runs.

    Attributes:
        in_order: votes run one at a time, in the same order on all ranks; else side by side.
        can_leave: a voter may join.
        joins: how often all ranks have joined and come back.
    """

    in_order: bool
    can_leave: bool
    joins: int

    def listen(self, news: Sequence[News]) -> list[tuple[str, str | None]]:
        """Tells what this voter is newly ready for, and hears what all are ready for.

        Returns:
            Names to run, each with the sentence that says why it cannot, if it cannot.
        """
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

    def __init__(self, transport: Transport) -> None:
        self.joins = 0
        self._transport = transport

    def listen(self, news: Sequence[News]) -> list[tuple[str, str | None]]:
        """Everything, as asked for."""
        return [
            (name, None) for _, name, claim, _ in news if name is not None and REFUSED not in claim
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
    """

    in_order = True
    can_leave = True

    def __init__(self, transport: MpiTransport) -> None:
        self.joins = 0
        self._mailbox = transport.mailbox()
        self._transport = transport
        # A voter whose call was refused may be ready again before the others' calls have come.
        self._ready: dict[str, dict[int, deque[dict[str, Any]]]] = {}
        self._asked_in: dict[str, int] = {}
        self._joined: dict[int, int] = {}

    def listen(self, news: Sequence[News]) -> list[tuple[str, str | None]]:
        """Asks voter 0, or answers for it."""
        if self._transport.rank != 0:
            for item in news:
                self._mailbox.send(item, 0)
            return self._mailbox.receive()
        for voter, name, claim, joins in [*news, *self._mailbox.receive()]:
            if name is None:
                self._joined[voter] = joins + 1
            else:
                self._ready.setdefault(name, {}).setdefault(voter, deque()).append(claim)
                self._asked_in[name] = max(joins, self._asked_in.get(name, 0))
        mine = []
        for name, error in self._decided():
            for voter in self._take(name):
                if voter == 0:
                    mine.append((name, error))
                else:
                    self._mailbox.send((name, error), voter)
        return mine

    def owes(self) -> bool:
        """Voter 0 alone answers others."""
        return any(REFUSED in claims[0][0] for claims in self._ready.values() if 0 in claims)

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
            who = f"allreduce {name!r}"
            if len(claims) == self._transport.size:
                ordered = [claims[voter][0] for voter in range(self._transport.size)]
                decided.append((name, refusal(who, ordered) or disagreement(who, ordered)))
            elif any(voter not in claims for voter in gone):
                sentence = (
                    f"{who}: {ranks_text(gone)} called join(), after which only the votes of a "
                    "DistributedOptimizer are served"
                )
                decided.append((name, sentence))
        return decided

    def _take(self, name: str) -> list[int]:
        """Ends everyone's first call of ``name``; returns who waits for the decision."""
        claims = self._ready[name]
        first = {voter: calls.popleft() for voter, calls in claims.items()}
        self._ready[name] = {voter: calls for voter, calls in claims.items() if calls}
        if not self._ready[name]:
            del self._ready[name], self._asked_in[name]
        return [voter for voter, claim in first.items() if REFUSED not in claim]


class NamedOrder:
    """Horovod's own matching by name: a claim is gathered under the vote's name, then it runs."""

    in_order = False
    can_leave = False

    def __init__(self, transport: HorovodTransport) -> None:
        self.joins = 0
        self._transport = transport
        self._asked: Counter[str] = Counter()
        self._claims: dict[tuple[str, int], dict[str, Any]] = {}
        self._digests: dict[tuple[str, int], Any] = {}
        self._differing: dict[tuple[str, int], Any] = {}

    def listen(self, news: Sequence[News]) -> list[tuple[str, str | None]]:
        """Gathers digests of claims; where they differ, the claims."""
        collectives = self._transport.collectives
        for _, name, claim, _ in news:
            if name is not None:
                self._asked[name] += 1
                call = name, self._asked[name]
                self._claims[call] = claim
                digest = _bytes(sha256(pickle.dumps(claim)).digest())
                self._digests[call] = collectives.allgather(digest, self._prefix(call, "claim"))
        decided: list[tuple[str, str | None]] = []
        for call, handle in list(self._digests.items()):
            if collectives.poll(handle):
                del self._digests[call]
                digests = collectives.result(handle).reshape(self._transport.size, -1)
                if (digests == digests[0]).all():
                    if REFUSED not in self._claims.pop(call):
                        decided.append((call[0], None))
                else:
                    packed = _bytes(pickle.dumps(self._claims[call]))
                    whole = self._prefix(call, "differs")
                    self._differing[call] = collectives.allgather(packed, whole)
        for call, handle in list(self._differing.items()):
            if collectives.poll(handle):
                del self._differing[call]
                claims = _unpickle_all(collectives.result(handle))
                if REFUSED not in self._claims.pop(call):
                    who = f"allreduce {call[0]!r}"
                    decided.append((call[0], refusal(who, claims) or disagreement(who, claims)))
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


def make_order(transport: Transport) -> Order:
    """How the voters of a transport agree."""
    if isinstance(transport, MpiTransport):
        return MailboxOrder(transport)
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
