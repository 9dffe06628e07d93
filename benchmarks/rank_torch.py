"""How every benchmark's program for PyTorch begins and ends on a rank."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hvd_sign.torch as hvd
from benchmarks.events import Events

Config = dict[str, Any]


def main(module: str, doc: str | None, measure: Callable[[Config, Events], None]) -> None:
    """Reads `MODULE CONFIG EVENTS` from the command line and measures, on one thread."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    parser.add_argument("config", type=Path)
    parser.add_argument("events", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hvd.init()
    measure(json.loads(arguments.config.read_text()), Events(arguments.events, hvd.rank()))
    hvd.shutdown()
