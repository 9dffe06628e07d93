"""Measured constants of the link and the kernels, on which every exchange's cost rests.

T = messages * latency + bytes / bandwidth + kernel time. Where several nodes have several ranks,
messages inside a node and between the nodes' leaders have constants of their own.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

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
        segment: seconds that each further segment of 64 blocks adds to it; None: unknown.
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
    segment: float | None = None


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
