"""What a vote will take: constants of the link and the kernels, and the cost model over them.

The model is the one that planning rests on: T = messages * latency + bytes / bandwidth + kernel
time. Where several nodes have several ranks, messages inside a node and between the nodes' leaders
have constants of their own.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from hvd_sign.buckets import BLOCK

logger = logging.getLogger("hvd_sign")

FILE_VERSION = 1


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
        vote: seconds that a vote of 64 blocks takes in the native pipeline; None: unknown.
        chunk: seconds that each further chunk of 64 blocks adds to it; None: unknown.
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
    vote: float | None = None
    chunk: float | None = None

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
