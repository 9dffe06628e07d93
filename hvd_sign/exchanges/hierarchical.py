"""Inside a node a vote or a mean, between nodes one ballot each, and the verdict handed down.

The lowest rank of a node leads it. Leaders send 2 (N-1)/N d/8 bytes to other nodes whatever the
number N of nodes; the other ranks send to their leader alone. The voters are the nodes: each has
one vote, however many ranks it has.

A node's ballot is what its ranks' majority says, or with ``local="mean"`` the sign of their mean in
fp32, to which a rank that meets NaN or Inf adds zeros in that chunk of 4096 coordinates. Under
``ties="coin"`` a tie inside a node is decided by the coins of a stream of its own, turned round in
every second node, so that ties of two nodes cancel, as zeros of two ranks do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from hvd_sign.core import kernels
from hvd_sign.core.signals import Signals
from hvd_sign.core.stats import recorder
from hvd_sign.devices import HOST, Operand
from hvd_sign.exchanges.base import Exchange, Load, Round, combine
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Pending, Together
from hvd_sign.transports.link import LinkModel, Parts
from hvd_sign.transports.nodes import Nodes


class Hierarchical(Exchange):
    """Each node owns one shard of the coordinates, and its leader tallies it."""

    name = "hierarchical"
    local = True
    of_ranks = False

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        assert transport.nodes is not None
        self._nodes = transport.nodes
        self.shards = self.voters = len(self._nodes.members)
        self.senders = self._nodes.leaders
        self.number = self._nodes.node
        self.parity = bool((self._nodes.node + self._nodes.local) & 1)
        self._poll: _Poll | None = None
        self._average: _Average | None = None

    def run(self, vote: Round, operands: Sequence[Operand], *, joined: bool) -> Iterator[Pending]:
        """Up to the leader, across to other leaders, and down."""
        nodes = self._nodes
        if len(nodes.neighbours) == 1:
            vote.pack(operands, joined=joined)
        elif vote.options.local == "mean":
            self._average = self._average or _Average(vote, nodes)
            yield from self._average.run(vote, operands, joined)
        else:
            self._poll = self._poll or _Poll(vote, nodes)
            yield from self._poll.run(vote, operands, joined)
        if not nodes.leads:
            yield nodes.pairs.receive(vote.messages.verdicts, nodes.neighbours[0])
        else:
            yield nodes.alltoall(nodes.leaders, nodes.node, vote.messages.ballots, vote.received)
            vote.decide(nodes.node)
            yield nodes.allgather(nodes.leaders, nodes.node, vote.verdict, vote.messages.verdicts)
            followers = nodes.neighbours[1:]
            yield Together([nodes.pairs.send(vote.messages.verdicts, voter) for voter in followers])
        vote.check_verdicts()

    @classmethod
    def parts(cls, link: LinkModel, load: Load) -> Parts:
        """Followers send to the leader of the largest node and hear from it; leaders shard."""
        followers, others = max(load.nodes) - 1, len(load.nodes) - 1
        up, ends, tallied = load.ballot, load.ends(link), load.ballot
        if load.local == "mean":
            up = 4 * load.coordinates
            ends += followers * load.coordinates / link.apply
        elif followers:
            tallied *= followers + 2
        latency = 2 * followers * _or(link.local_latency, link.latency)
        latency += 2 * others * _or(link.node_latency, link.latency)
        wire = followers * (up + load.ballot) / _or(link.local_bandwidth, link.bandwidth)
        sent = 2 * others / len(load.nodes) * load.ballot
        wire += sent / _or(link.node_bandwidth, link.bandwidth)
        return Parts(latency, wire, ends + tallied / link.tally)

    @classmethod
    def impossible(cls, transport: Transport) -> str | None:
        """It has to know who shares a node."""
        if transport.nodes is not None:
            return None
        return (
            "needs MPI, which tells who shares a node; over Horovod's own collectives expected "
            "'sharded', 'allgather' or 'auto'"
        )

    @classmethod
    def worthwhile(cls, transport: Transport) -> bool:
        """Only where several nodes have several ranks: its verdict is another one."""
        nodes = transport.nodes
        return nodes is not None and len(nodes.members) > 1 and nodes.largest > 1


def _or(measured: float | None, instead: float) -> float:
    return instead if measured is None else measured


class _Poll:
    """A node's vote: its leader tallies its ranks' ballots into the node's."""

    def __init__(self, vote: Round, nodes: Nodes) -> None:
        self._nodes = nodes
        ranks = len(nodes.neighbours) if nodes.leads else 0
        self._received = np.zeros((ranks, vote.messages.geometry.total_bytes), np.uint8)
        self._shard = np.zeros((ranks, vote.messages.geometry.message_bytes), np.uint8)

    def run(self, vote: Round, operands: Sequence[Operand], joined: bool) -> Iterator[Pending]:
        """Leaves the node's ballot with its leader."""
        nodes = self._nodes
        vote.pack(operands, joined=joined, sender=nodes.local)
        if not nodes.leads:
            yield nodes.pairs.send(vote.messages.ballots, nodes.neighbours[0])
            return
        self._received[0] = vote.messages.ballots
        rows = zip(self._received[1:], nodes.neighbours[1:], strict=True)
        yield Together([nodes.pairs.receive(row, voter) for row, voter in rows])
        with recorder.timed("tally_seconds"), vote.span("tally"):
            self._tally(vote)

    def _tally(self, vote: Round) -> None:
        size = vote.messages.geometry.message_bytes
        flags: list[int] = []
        counters: list[int] = []
        for shard in range(vote.messages.geometry.shards):
            one = slice(shard * size, (shard + 1) * size)
            np.copyto(self._shard, self._received[:, one])
            flags, counters = vote.check(
                self._shard, kernels.BALLOT, shard, senders=self._nodes.neighbours
            )
            vote.count(
                self._shard.reshape(-1),
                vote.messages.ballots[one],
                shard,
                key=kernels.coin_key(vote.options.seed, "node", vote.step),
                parity=bool(self._nodes.node & 1),
            )
        vote.seal(
            vote.messages.ballots,
            kernels.BALLOT,
            combine(flags),
            sum(counters),
            sender=self._nodes.node,
        )


class _Average:
    """A node's mean: its leader adds up its ranks' signals, in their order, and packs the mean.

    Behind a rank's signals travel their sizes: the node's is the median, not the mean's own, which
    one rank could move as far as it likes.
    """

    def __init__(self, vote: Round, nodes: Nodes) -> None:
        self._nodes = nodes
        count = Signals.size(vote.bucket)
        sizes = len(vote.bucket.specs) if vote.messages.scaled else 0
        self._geometry = kernels.Geometry(0, 1, False, count + sizes)
        self._sent = np.zeros(self._geometry.total_bytes, np.uint8)
        self._received = np.zeros(self._geometry.total_bytes * nodes.leads, np.uint8)
        (sent,) = kernels.trailers(self._sent, self._geometry)
        own, self._own_sizes = np.split(sent, [count])
        if nodes.leads:
            (theirs,) = kernels.trailers(self._received, self._geometry)
            self._theirs, self._their_sizes = np.split(theirs, [count])
            self._sizes = _Sizes(len(nodes.neighbours), sizes)
        self._signals = Signals(vote.bucket, own)

    def run(self, vote: Round, operands: Sequence[Operand], joined: bool) -> Iterator[Pending]:
        """Leaves the node's ballot with its leader."""
        nodes = self._nodes
        with recorder.timed("pack_seconds"), vote.span("pack"):
            chunks = self._signals.read([o.device.read(o) for o in operands])
            vote.note_nonfinite(chunks)
            if vote.messages.scaled:
                self._own_sizes[:] = self._signals.mean_abs()
        if not nodes.leads:
            flag = kernels.JOINED if joined else 0
            vote.seal(self._sent, kernels.BALLOT, flag, chunks, sender=0, geometry=self._geometry)
            yield nodes.pairs.send(self._sent, nodes.neighbours[0])
            return
        self._sizes.rows[0] = self._own_sizes
        for place, neighbour in enumerate(nodes.neighbours[1:], 1):
            yield nodes.pairs.receive(self._received, neighbour)
            with recorder.timed("tally_seconds"), vote.span("tally"):
                flags, counters = vote.check(
                    self._received,
                    kernels.BALLOT,
                    0,
                    senders=[neighbour],
                    geometry=self._geometry,
                )
                joined = joined and bool(flags[0] & kernels.JOINED)
                chunks += counters[0]
                self._signals.add(self._theirs)
                self._sizes.rows[place] = self._their_sizes
        self._signals.bound()
        self._signals.divide()
        rows = zip(self._signals.tensors, self._signals.given, strict=True)
        means: list[Operand] = [
            Operand(HOST, mean if given else None, None) for mean, given in rows
        ]
        sizes = self._sizes.median() if vote.messages.scaled else None
        vote.pack(means, joined=joined, nonfinite=chunks, sizes=sizes)


class _Sizes:
    """A node's mean absolute signals, whose median is taken as in every tally.

    Attributes:
        rows: float32[ranks, tensors].
    """

    def __init__(self, ranks: int, tensors: int) -> None:
        self._geometry = kernels.Geometry(0, 1, False, tensors)
        self._given = np.zeros(ranks * self._geometry.message_bytes, np.uint8)
        self._median = np.zeros(self._geometry.message_bytes, np.uint8)
        self.rows = kernels.trailers(self._given, self._geometry)

    def median(self) -> npt.NDArray[np.float32]:
        """Of each tensor: float32[tensors]."""
        kernels.tally(
            self._given,
            self._geometry,
            self._median,
            shard=0,
            ties=0,
            key=0,
            first_blocks=np.zeros(1, np.int64),
            ordinals=np.zeros(1, np.uint64),
        )
        median: npt.NDArray[np.float32] = kernels.trailers(self._median, self._geometry)[0]
        return median
