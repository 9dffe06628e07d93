"""Timelines that begin and end when a program asks for it."""

from __future__ import annotations

from hvd_sign.standalone.ranks import rank
from hvd_sign.standalone.timeline import timeline


def start_timeline(file_path: str, mark_cycles: bool = False) -> None:
    """Begins a timeline, which rank 0 writes; one that is open ends.

    Args:
        file_path: of rank 0.
        mark_cycles: without effect: this runtime has no cycles.

    Raises:
        NotInitializedError: ``init()`` was not called.
    """
    if rank() == 0:
        timeline.open(file_path)


def stop_timeline() -> None:
    """Ends the timeline, if there is one.

    Raises:
        NotInitializedError: ``init()`` was not called.
    """
    if rank() == 0:
        timeline.close()
