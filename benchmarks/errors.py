"""What a benchmark says instead of a traceback."""

from __future__ import annotations


class BenchError(Exception):
    """A benchmark that cannot be done as asked; the message is what its user reads."""
