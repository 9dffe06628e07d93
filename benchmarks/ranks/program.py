"""How every benchmark's program begins and ends on a rank, whatever its framework."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.ranks.events import Events

Config = dict[str, Any]
Measure = Callable[[Config, Events], None]


def main(module: str, doc: str | None, hvd: ModuleType, measure: Measure) -> None:
    """Reads `MODULE CONFIG EVENTS` from the command line and measures among the ranks of `hvd`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    parser.add_argument("config", type=Path)
    parser.add_argument("events", type=Path)
    arguments = parser.parse_args()
    hvd.init()
    measure(json.loads(arguments.config.read_text()), Events(arguments.events, hvd.rank()))
    hvd.shutdown()
