"""What every exchange offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy.typing as npt

from hvd_sign.core import kernels
from hvd_sign.core.buckets import BLOCK, Bucket
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.places import Messages
from hvd_sign.devices import Operand
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Pending, Together
from hvd_sign.transports.link import LinkModel, Parts
from hvd_sign.votes import Tally


class Load(NamedTuple):
    """A vote whose time is to be told.

    Attributes:
        coordinates: of the bucket.
        voters: how many ranks.
        planes: 2 if zeros travel too (``ties="zero"``).
        nodes: how many ranks each node has; empty where nobody can tell.
        local: ``"vote"`` or ``"mean"`` inside a node.
    """

    coordinates: int
    voters: int
    planes: int = 1
    nodes: tuple[int, ...] = ()
    local: str = "vote"

    @property
    def ballot(self) -> float:
        """Bytes of one rank's ballot: its planes, and the activity bitmap."""
        return self.coordinates / 8 * (self.planes + 1 / BLOCK)

    def ends(self, link: LinkModel) -> float:
        """Seconds that packing and applying take."""
        return self.coordinates / link.pack + self.coordinates / link.apply


class Round(Protocol):
    """A vote on one bucket, as an exchange sees it.

    Attributes:
        messages: what operands are packed into, one message for each shard, and the verdict.
        received: uint8, one message from each of the ballots that meet in a tally.
        verdict: uint8, one message: what this rank decided.
    """

    bucket: Bucket
    options: VoteOptions
    transport: Transport
    messages: Messages
    received: npt.NDArray[Any]
    verdict: npt.NDArray[Any]
    step: int

    def pack(
        self,
        operands: Sequence[Operand],
        *,
        joined: bool,
        sender: int | None = None,
        nonfinite: int = 0,
        sizes: npt.NDArray[Any] | None = None,
    ) -> None:
        """Packs and seals this rank's ballot.

        Args:
            operands: one for each of the bucket's tensors.
            joined: this rank has no more data.
            sender: its number among those whose ballots meet; the exchange's own by default.
            nonfinite: chunks with NaN or Inf that were met before.
            sizes: float32[len(operands)], mean absolute signals in the place of their own.
        """
        ...

    def decide(self, shard: int) -> None:
        """Checks the received ballots of ``shard`` and decides it, into ``verdict``."""
        ...

    def count(
        self,
        ballots: npt.NDArray[Any],
        verdict: npt.NDArray[Any],
        shard: int,
        *,
        key: int,
        parity: bool = False,
    ) -> Tally:
        """Lets the vote's rule decide ballots of a shard, with coins of its own for ties."""
        ...

    def check_verdicts(self, senders: Sequence[int] | None = None) -> None:
        """Checks the verdicts of all shards.

        Args:
            senders: who sent each shard's; by default who sends the ballot of that number.
        """
        ...

    def trailers(self, messages: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The scales in messages, float32[messages, ...]; NaN does not count."""
        ...

    def seal(
        self,
        messages: npt.NDArray[Any],
        kind: int,
        flags: int,
        counter: int,
        *,
        sender: int,
        shard: int = -1,
        geometry: kernels.Geometry | None = None,
    ) -> None:
        """Writes the headers of messages; message j has shard j unless ``shard`` says which."""
        ...

    def check(
        self,
        messages: npt.NDArray[Any],
        kind: int,
        shard: int = -1,
        *,
        senders: Sequence[int],
        geometry: kernels.Geometry | None = None,
    ) -> tuple[list[int], list[int]]:
        """Checks the headers of messages; returns flags and counters.

        Args:
            messages: one from each sender.
            kind: of messages.
            shard: theirs; negative: message i has shard i.
            senders: the ranks that sent them, for sentences.
            geometry: other than the round's own.

        Raises:
            ValueError: a message is damaged, or of another vote.
        """
        ...

    def note_nonfinite(self, chunks: int) -> None:
        """Counts the chunks in which this rank met NaN or Inf."""
        ...

    def span(self, what: str) -> AbstractContextManager[None]:
        """Shows what is done within it in the timeline."""
        ...


class Exchange(ABC):
    """A way for ballots to meet; one object for each vote.

    Args:
        transport: connects the ranks.

    Attributes:
        name: as users give it.
        inline: every rank counts once and trusts those who tally: small single votes may travel
            with the ranks' agreement instead, to be tallied by voter 0.
        of_ranks: the ballots that meet are the ranks' own, so that a rule can weigh them.
        local: ``local`` says what makes a node's ballot.
        shards: into how many shards a bucket is cut; each shard of a ballot is one message.
        voters: how many ballots meet in a tally that decides.
        number: of this rank among those who send these ballots.
        senders: their ranks, for sentences.
        parity: whether this rank's zero coins are turned round, so that two ranks' zeros cancel.
    """

    name: ClassVar[str]
    inline: ClassVar[bool] = False
    of_ranks: ClassVar[bool] = True
    local: ClassVar[bool] = False

    def __init__(self, transport: Transport) -> None:
        owners = self.owners(transport.size)
        self._owners = [] if owners is None else owners
        self.shards = transport.size if owners is None else len(owners)
        self.voters = transport.size
        self.number = transport.rank
        self.senders: Sequence[int] = range(transport.size)
        self.parity = bool(transport.rank & 1)

    def run(self, vote: Round, operands: Sequence[Operand], *, joined: bool) -> Iterator[Pending]:
        """Takes the round from the operands to checked verdicts.

        Yields each communication that must have ended before it is resumed. Unless it is
        overridden, ballots go to their shards' owners and verdicts from these to all others, pair
        by pair.
        """
        vote.pack(operands, joined=joined)
        rank, messages = vote.transport.rank, vote.messages
        pairs: Any = vote.transport.pairs  # a lone voter needs none
        ballots = messages.ballots.reshape(self.shards, -1)
        verdicts = messages.verdicts.reshape(self.shards, -1)
        for shard, owners in enumerate(self._owners):
            parcels: list[Pending] = []
            if rank in owners:
                received = vote.received.reshape(vote.transport.size, -1)
                received[rank] = ballots[shard]
                others = [voter for voter in range(vote.transport.size) if voter != rank]
                parcels += [pairs.receive(received[voter], voter) for voter in others]
            parcels += [pairs.send(ballots[shard], owner) for owner in owners if owner != rank]
            yield Together(parcels)
            if rank in owners:
                vote.decide(shard)
                verdicts[shard] = vote.verdict
        parcels = []
        for shard, owners in enumerate(self._owners):
            if rank not in owners:
                parcels.append(pairs.receive(verdicts[shard], owners[0]))
            elif rank == owners[0]:
                others = [voter for voter in range(vote.transport.size) if voter not in owners]
                parcels += [pairs.send(verdicts[shard], voter) for voter in others]
        yield Together(parcels)
        vote.check_verdicts([owners[0] for owners in self._owners])

    @classmethod
    def owners(cls, voters: int) -> list[list[int]] | None:
        """Which voters tally each shard, ascending; the first of them tells the others.

        That is all that the native engine has to know. None: it is more than that.
        """
        return None

    @classmethod
    @abstractmethod
    def parts(cls, link: LinkModel, load: Load) -> Parts:
        """What a vote takes, in seconds, by the constants of the link."""

    @classmethod
    def impossible(cls, transport: Transport) -> str | None:
        """Why a transport cannot carry it, as the end of a sentence; None if it can."""
        if cls.run is not Exchange.run or transport.pairs is not None or transport.size == 1:
            return None
        return "needs messages between pairs of ranks, which this transport has not"

    @classmethod
    def worthwhile(cls, transport: Transport) -> bool:
        """Whether ``exchange="auto"`` may choose it there."""
        return cls.impossible(transport) is None


def combine(flags: Sequence[int]) -> int:
    """Flags of several messages in one: joined or abstained if all are, non-finite if any is."""
    every = kernels.JOINED | kernels.ABSTAINED
    anyone = 0
    for flag in flags:
        every &= flag
        anyone |= flag
    return every | (anyone & kernels.NONFINITE)
