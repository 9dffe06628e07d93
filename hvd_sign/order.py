"""How voters agree on which ad-hoc votes run, and on what they are."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Protocol

import numpy as np

from hvd_sign.agreement import disagreement, ranks_text
from hvd_sign.transports.base import Buffer, Transport
from hvd_sign.transports.horovod import HorovodTransport
from hvd_sign.transports.mpi import MpiTransport

News = tuple[int, str | None, dict[str, Any], int]
"""A voter, the name it is ready for (None: it has joined), what it claims of it, and how many
joins it has come back from."""


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
        return [(name, None) for _, name, _, _ in news if name is not None]

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
        self._ready: dict[str, dict[int, dict[str, Any]]] = {}
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
                self._ready.setdefault(name, {})[voter] = claim
                self._asked_in[name] = max(joins, self._asked_in.get(name, 0))
        mine = []
        for name, claims, error in self._decided():
            del self._ready[name], self._asked_in[name]
            for voter in claims:
                if voter == 0:
                    mine.append((name, error))
                else:
                    self._mailbox.send((name, error), voter)
        return mine

    def transport_for(self, name: str) -> Transport:
        """The stream's own: all voters run the same vote at a time."""
        return self._transport

    def _decided(self) -> list[tuple[str, dict[int, dict[str, Any]], str | None]]:
        """Names that all voters are ready for, or will never be."""
        decided = []
        for name, claims in self._ready.items():
            # Who asked may have come back from a join that others are still coming back from.
            asked_in = self._asked_in[name]
            gone = sorted(voter for voter, joins in self._joined.items() if joins > asked_in)
            who = f"allreduce {name!r}"
            if len(claims) == self._transport.size:
                ordered = [claims[voter] for voter in range(self._transport.size)]
                decided.append((name, claims, disagreement(who, ordered)))
            elif any(voter not in claims for voter in gone):
                sentence = (
                    f"{who}: {ranks_text(gone)} called join(), after which only the votes of a "
                    "DistributedOptimizer are served"
                )
                decided.append((name, claims, sentence))
        return decided


class NamedOrder:
    """Horovod's own matching by name: a claim is gathered under the vote's name, then it runs."""

    in_order = False
    can_leave = False

    def __init__(self, transport: HorovodTransport) -> None:
        self.joins = 0
        self._transport = transport
        self._asked: Counter[str] = Counter()
        self._claims: dict[str, dict[str, Any]] = {}
        self._digests: dict[str, Any] = {}
        self._differing: dict[str, Any] = {}

    def listen(self, news: Sequence[News]) -> list[tuple[str, str | None]]:
        """Gathers digests of claims; where they differ, the claims."""
        collectives = self._transport.collectives
        for _, name, claim, _ in news:
            if name is not None:
                self._asked[name] += 1
                self._claims[name] = claim
                digest = _bytes(sha256(pickle.dumps(claim)).digest())
                self._digests[name] = collectives.allgather(digest, self._prefix(name, "claim"))
        decided: list[tuple[str, str | None]] = []
        for name, handle in list(self._digests.items()):
            if collectives.poll(handle):
                del self._digests[name]
                digests = collectives.result(handle).reshape(self._transport.size, -1)
                if (digests == digests[0]).all():
                    del self._claims[name]
                    decided.append((name, None))
                else:
                    packed = _bytes(pickle.dumps(self._claims.pop(name)))
                    whole = self._prefix(name, "differs")
                    self._differing[name] = collectives.allgather(packed, whole)
        for name, handle in list(self._differing.items()):
            if collectives.poll(handle):
                del self._differing[name]
                claims = _unpickle_all(collectives.result(handle))
                decided.append((name, disagreement(f"allreduce {name!r}", claims)))
        return decided

    def transport_for(self, name: str) -> Transport:
        """One whose operations bear the vote's name, and the number of times it was asked for."""
        whole = self._transport
        return HorovodTransport(
            whole.collectives, whole.rank, whole.size, self._prefix(name, "vote")
        )

    def _prefix(self, name: str, what: str) -> str:
        return f"{self._transport.prefix}.{what}.{name}.{self._asked[name]}"


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
