"""Timelines, ours and Horovod's, laid over one another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Event = dict[str, Any]

START = "start_time_since_epoch_in_micros"
"""In the first event of either kind of timeline: when its time 0 was."""


class Timeline(NamedTuple):
    """A timeline as a file holds it.

    Attributes:
        name: of the process that it becomes.
        start: its time 0, in microseconds since the epoch.
        events: after the first one.
        horovods: Horovod's, in which a process is a tensor; else a vote's, with a thread a stream.
    """

    name: str
    start: float
    events: list[Event]
    horovods: bool


def merge(files: Sequence[Path]) -> dict[str, Any]:
    """One Chrome trace of many timelines; its time 0 is the earliest one's.

    Args:
        files: written by ``HVD_SIGN_TIMELINE`` or ``HOROVOD_TIMELINE``, whole or cut off. Each
            becomes a process, and what is a tensor or a stream in it, a thread.

    Returns:
        A JSON object for chrome://tracing and Perfetto.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no such timeline.
    """
    timelines = [read(file) for file in files]
    zero = min(timeline.start for timeline in timelines)
    merged: list[Event] = []
    for pid, timeline in enumerate(timelines):
        merged.append(_about(pid, "process_name", {"name": timeline.name}))
        merged.append(_about(pid, "process_sort_index", {"sort_index": pid}))
        for event in timeline.events:
            merged.append(_moved(event, pid, timeline.start - zero, timeline.horovods))
    return {"traceEvents": merged, "displayTimeUnit": "ms"}


def read(file: Path) -> Timeline:
    """The timeline in ``file``, as far as it goes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    events = _events(file.read_text(errors="replace"))
    about = events[0].get("args") if events else None
    if not isinstance(about, dict) or not isinstance(about.get(START), (int, float)):
        raise ValueError(
            f"{file}: expected a timeline of HVD_SIGN_TIMELINE or HOROVOD_TIMELINE, whose first "
            f"event tells {START}, got {str(events[0]) if events else 'no events'}"
        )
    horovods = "name" not in about
    name = f"Horovod, {file.name}" if horovods else about["name"]
    return Timeline(name, about[START], events[1:], horovods)


def _events(text: str) -> list[Event]:
    """The whole events at the beginning of a list that may lack its end."""
    decoder = json.JSONDecoder(strict=False)
    events = []
    position = _skip(text, 0, " \t\r\n[")
    while position < len(text):
        try:
            event, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            break
        if not isinstance(event, dict):
            break
        events.append(event)
        position = _skip(text, position, " \t\r\n,")
    return events


def _skip(text: str, position: int, skipped: str) -> int:
    while position < len(text) and text[position] in skipped:
        position += 1
    return position


def _moved(event: Event, pid: int, microseconds: float, horovods: bool) -> Event:
    """An event in its place in the merged trace."""
    moved = {**event, "pid": pid}
    if horovods:
        moved["tid"] = event.get("pid", 0)
        if event.get("ph") == "M":
            moved["name"] = str(event.get("name")).replace("process", "thread")
    if "ts" in event:
        moved["ts"] = event["ts"] + microseconds
    return moved


def _about(pid: int, what: str, args: dict[str, Any]) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": 0, "args": args}
