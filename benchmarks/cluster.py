"""Runs a program on an emulated cluster; see ``benchmarks.emulation.hosts``."""

from __future__ import annotations

import sys

from benchmarks.emulation.hosts import main

if __name__ == "__main__":
    sys.exit(main())
