"""What a vote will take: constants of the link and the kernels, and the cost model over them.

The model is the one that planning rests on: T = messages * latency + bytes / bandwidth + kernel
time. Where several nodes have several ranks, messages inside a node and between the nodes' leaders
have constants of their own.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hvd_sign import kernels
from hvd_sign.buckets import BLOCK
from hvd_sign.transports.base import Buffer, Pending, Transport

logger = logging.getLogger("hvd_sign")

FILE_VERSION = 1
SMALL, LARGE = 64, 2**18
"""Bytes of the messages that latency and bandwidth are measured with."""


class Parts(NamedTuple):
    """What a vote's time is made of, in seconds."""

    latency: float
    wire: float
    kernels: float


@dataclass(frozen=True)
class LinkModel:
    """Measured constants; the same on all ranks.

    Attributes:
        latency: seconds that each message adds, when all ranks send to all.
        bandwidth: bytes/s that a rank then sends while it receives as many.
        pack: fp32 coordinates/s.
        tally: bytes of ballots/s.
        apply: fp32 coordinates/s.
        local_latency: as ``latency``, among the ranks of a node; None: the same.
        local_bandwidth: as ``bandwidth``, among the ranks of a node; None: the same.
        node_latency: as ``latency``, among the nodes' leaders; None: the same.
        node_bandwidth: as ``bandwidth``, among the nodes' leaders; None: the same.
    """

    latency: float
    bandwidth: float
    pack: float
    tally: float
    apply: float
    local_latency: float | None = None
    local_bandwidth: float | None = None
    node_latency: float | None = None
    node_bandwidth: float | None = None

    def seconds(
        self,
        exchange: str,
        coordinates: int,
        voters: int,
        *,
        planes: int = 1,
        nodes: Sequence[int] = (),
        local: str = "vote",
    ) -> float:
        """Predicted time of one vote: the sum of its ``parts()``, with the same arguments."""
        return sum(
            self.parts(exchange, coordinates, voters, planes=planes, nodes=nodes, local=local)
        )

    def parts(
        self,
        exchange: str,
        coordinates: int,
        voters: int,
        *,
        planes: int = 1,
        nodes: Sequence[int] = (),
        local: str = "vote",
    ) -> Parts:
        """What the predicted time of one vote is made of.

        Args:
            exchange: ``"sharded"``, ``"allgather"``, ``"hierarchical"``, or ``"dense"`` for a ring
                allreduce in fp32, whose copies and sums count as packing and applying do.
            coordinates: of the bucket.
            voters: how many ranks.
            planes: 2 if zeros travel too (``ties="zero"``).
            nodes: how many ranks each node has; only read for ``"hierarchical"``.
            local: ``"vote"`` or ``"mean"`` inside a node; only read for ``"hierarchical"``.

        Raises:
            ValueError: the exchange is unknown to the model.
        """
        ballot = coordinates / 8 * (planes + 1 / BLOCK)
        ends = coordinates / self.pack + coordinates / self.apply
        others = voters - 1
        if exchange == "hierarchical":
            return self._hierarchical(coordinates, ballot, ends, nodes, local)
        if exchange == "sharded":
            messages, sent, tallied = 2 * others, 2 * others / voters * ballot, ballot
        elif exchange == "allgather":
            messages, sent, tallied = others, others * ballot, voters * ballot
        elif exchange == "dense":
            messages, sent, tallied = 2 * others, 8 * others / voters * coordinates, 0.0
        else:
            raise ValueError(f"exchange: the cost model knows no {exchange!r}")
        return Parts(messages * self.latency, sent / self.bandwidth, ends + tallied / self.tally)

    def _hierarchical(
        self, coordinates: int, ballot: float, ends: float, nodes: Sequence[int], local: str
    ) -> Parts:
        """Followers send to the leader of the largest node and hear from it; leaders shard."""
        followers, others = max(nodes) - 1, len(nodes) - 1
        up = 4 * coordinates if local == "mean" else ballot
        if local == "mean":
            ends += followers * coordinates / self.apply
            tallied = ballot
        else:
            tallied = ballot * (1 + (followers + 1 if followers else 0))
        latency = 2 * followers * _or(self.local_latency, self.latency)
        latency += 2 * others * _or(self.node_latency, self.latency)
        wire = followers * (up + ballot) / _or(self.local_bandwidth, self.bandwidth)
        wire += 2 * others / len(nodes) * ballot / _or(self.node_bandwidth, self.bandwidth)
        return Parts(latency, wire, ends + tallied / self.tally)


def _or(measured: float | None, instead: float) -> float:
    return instead if measured is None else measured


ORDINARY = LinkModel(latency=50e-6, bandwidth=1.25e8, pack=2e9, tally=4e9, apply=2e9)
"""Where nothing was measured: Ethernet of 1 Gbit/s, and one core's kernels."""


def measure(transport: Transport, *, seconds: float = 1.0) -> LinkModel:
    """Measures a transport and this machine's kernels; the slowest rank's figures count.

    Collective over the transport's voters; blocks.

    Args:
        transport: nothing else may be under way on it.
        seconds: about how long to measure.
    """
    nodes = transport.nodes
    layered = nodes is not None and len(nodes.members) > 1 and nodes.largest > 1
    share = (0.25 if layered else 0.7) * seconds
    size = transport.size
    latency, bandwidth = _measure_link(transport, transport.alltoall, size, size, share)
    inside: tuple[float, float] | tuple[None, None] = None, None
    between: tuple[float, float] | tuple[None, None] = None, None
    if nodes is not None and layered:
        inside = _measure_link(
            transport,
            partial(nodes.alltoall, nodes.neighbours, nodes.local),
            len(nodes.neighbours),
            nodes.largest,
            share,
        )
        group, place = (nodes.leaders, nodes.node) if nodes.leads else ((transport.rank,), 0)
        between = _measure_link(
            transport, partial(nodes.alltoall, group, place), len(group), len(nodes.members), share
        )

    coordinates, voters = 2**20, 4
    geometry = kernels.Geometry(coordinates // BLOCK, 1)
    signal = np.ones(coordinates, np.float32)
    messages = np.zeros(geometry.total_bytes, np.uint8)
    ballots = np.zeros(geometry.total_bytes * voters, np.uint8)
    first_blocks, ordinals = np.zeros(1, np.int64), np.zeros(1, np.uint64)
    share = 0.1 * seconds
    pack = _agreed(
        transport,
        lambda: kernels.pack(signal, messages, geometry, 0, ties=0, key=0, parity=False, ordinal=0),
        share,
    )
    tally = _agreed(
        transport,
        lambda: kernels.tally(
            ballots,
            geometry,
            messages,
            shard=0,
            ties=0,
            key=0,
            first_blocks=first_blocks,
            ordinals=ordinals,
        ),
        share,
    )
    apply = _agreed(transport, lambda: kernels.write_verdict(signal, messages, geometry, 0), share)
    return LinkModel(
        latency=latency,
        bandwidth=bandwidth,
        pack=coordinates / pack,
        tally=ballots.size / tally,
        apply=coordinates / apply,
        local_latency=inside[0],
        local_bandwidth=inside[1],
        node_latency=between[0],
        node_bandwidth=between[1],
    )


def _measure_link(
    transport: Transport,
    alltoall: Callable[[Buffer, Buffer], Pending],
    size: int,
    largest: int,
    seconds: float,
) -> tuple[float, float]:
    """Latency and bandwidth of an all-to-all among groups of voters, at the same time in all.

    Args:
        transport: on which all voters agree what they saw.
        alltoall: among this voter's group.
        size: of this voter's group.
        largest: size of the largest group, which the slowest figures belong to.
        seconds: about how long to measure.
    """
    small = np.zeros(SMALL * size, np.uint8), np.zeros(SMALL * size, np.uint8)
    large = np.zeros(LARGE * size, np.uint8), np.zeros(LARGE * size, np.uint8)
    for buffers in (small, large):
        _wait(alltoall(*buffers))
    quick = _agreed(transport, lambda: _wait(alltoall(*small)), 0.3 * seconds)
    slow = _agreed(transport, lambda: _wait(alltoall(*large)), 0.7 * seconds)
    if largest == 1:
        return quick, float("inf")
    return quick / (largest - 1), (largest - 1) * LARGE / max(slow - quick, 1e-9)


def default_file() -> Path:
    """Where the constants are kept: HVD_SIGN_LINK_FILE, else in the user's configuration."""
    named = os.environ.get("HVD_SIGN_LINK_FILE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home, "hvd_sign", "link.json")


def save(model: LinkModel, file: Path) -> None:
    """Writes the constants as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    known = {name: value for name, value in asdict(model).items() if value is not None}
    file.write_text(json.dumps({"version": FILE_VERSION, **known}, indent=2) + "\n")


def load(file: Path) -> LinkModel | None:
    """The constants that ``save()`` wrote, or None if there is no such file.

    Raises:
        ValueError: the file is no such thing, or of another version.
    """
    if not file.exists():
        return None
    try:
        fields = json.loads(file.read_text())
        version = fields.pop("version")
        if version == FILE_VERSION:
            return LinkModel(**{name: float(value) for name, value in fields.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file}: expected constants from `hvd-sign bench-link`: {error}"
        ) from error
    raise ValueError(f"{file}: expected version {FILE_VERSION}, got {version!r}: measure again")


def load_or_warn() -> LinkModel | None:
    """The constants of the default file; a damaged one is told in the log, and passed over."""
    try:
        return load(default_file())
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: no home directory
        logger.warning("constants of the link: %s", error)
        return None


def load_or_measure(transport: Transport) -> LinkModel:
    """The constants of voter 0's file, else a measurement. Collective over the voters; blocks."""
    known = transport.gather_objects(load_or_warn() if transport.rank == 0 else None)[0]
    return known if isinstance(known, LinkModel) else measure(transport)


def _wait(pending: Pending) -> None:
    while not pending.test():
        time.sleep(0)


def _agreed(transport: Transport, action: Callable[[], object], seconds: float) -> float:
    """Median time of ``action`` on the slowest rank; done equally often on all."""
    start = time.perf_counter()
    action()
    first = max(transport.gather_objects(time.perf_counter() - start))
    times = []
    for _ in range(max(3, min(200, int(seconds / max(first, 1e-6))))):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return float(max(transport.gather_objects(float(np.median(times)))))
