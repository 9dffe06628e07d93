"""What a vote will take: constants of the link and the kernels, and the cost model over them.

The model is the one that the choice of an exchange rests on:
T = messages * latency + bytes / bandwidth + kernel time.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hvd_sign import kernels
from hvd_sign.buckets import BLOCK
from hvd_sign.transports.base import Pending, Transport

logger = logging.getLogger("hvd_sign")

FILE_VERSION = 1
SMALL, LARGE = 64, 2**18
"""Bytes of the messages that latency and bandwidth are measured with."""


@dataclass(frozen=True)
class LinkModel:
    """Measured constants; the same on all ranks.

    Attributes:
        latency: seconds that each message adds.
        bandwidth: bytes/s that a rank sends while it receives as many.
        pack: fp32 coordinates/s.
        tally: bytes of ballots/s.
        apply: fp32 coordinates/s.
    """

    latency: float
    bandwidth: float
    pack: float
    tally: float
    apply: float

    def seconds(self, exchange: str, coordinates: int, voters: int, *, planes: int = 1) -> float:
        """Predicted time of one vote.

        Args:
            exchange: ``"sharded"`` or ``"allgather"``.
            coordinates: of the bucket.
            voters: how many.
            planes: 2 if zeros travel too (``ties="zero"``).

        Raises:
            ValueError: the exchange is unknown to the model.
        """
        ballot = coordinates / 8 * (planes + 1 / BLOCK)
        others = voters - 1
        if exchange == "sharded":
            messages, sent, tallied = 2 * others, 2 * others / voters * ballot, ballot
        elif exchange == "allgather":
            messages, sent, tallied = others, others * ballot, voters * ballot
        else:
            raise ValueError(f"exchange: the cost model knows no {exchange!r}")
        kernel_time = coordinates / self.pack + tallied / self.tally + coordinates / self.apply
        return messages * self.latency + sent / self.bandwidth + kernel_time


ORDINARY = LinkModel(latency=50e-6, bandwidth=1.25e8, pack=2e9, tally=4e9, apply=2e9)
"""Where nothing was measured: Ethernet of 1 Gbit/s, and one core's kernels."""


def measure(transport: Transport, *, seconds: float = 1.0) -> LinkModel:
    """Measures a transport and this machine's kernels; the slowest rank's figures count.

    Collective over the transport's voters; blocks.

    Args:
        transport: nothing else may be under way on it.
        seconds: about how long to measure.
    """
    size = transport.size
    small = np.zeros(SMALL * size, np.uint8), np.zeros(SMALL * size, np.uint8)
    large = np.zeros(LARGE * size, np.uint8), np.zeros(LARGE * size, np.uint8)
    for buffers in (small, large):
        _wait(transport.alltoall(*buffers))
    quick = _agreed(transport, lambda: _wait(transport.alltoall(*small)), 0.2 * seconds)
    slow = _agreed(transport, lambda: _wait(transport.alltoall(*large)), 0.5 * seconds)
    latency = quick / max(size - 1, 1)
    bandwidth = (size - 1) * LARGE / max(slow - quick, 1e-9) if size > 1 else float("inf")

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
    )


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
    file.write_text(json.dumps({"version": FILE_VERSION, **asdict(model)}, indent=2) + "\n")


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
