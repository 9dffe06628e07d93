"""Streams that were shut down here, but perhaps not yet on all ranks.

Their communicators are kept until every rank has said goodbye on them: who has not may still wait
for a vote, and a goodbye that comes late must find the stream that it belongs to, not a new one in
its place.
"""

from __future__ import annotations

from typing import NamedTuple

from hvd_sign.engine.stall import StallCheck
from hvd_sign.transports.base import Transport


class _Parting(NamedTuple):
    stalls: StallCheck
    transport: Transport


_partings: list[_Parting] = []


def begin(stalls: StallCheck, transport: Transport) -> None:
    """Notes that this rank has left a stream, whose transport is given back when all have."""
    _partings.append(_Parting(stalls, transport))


def release() -> None:
    """Gives back the transports of the streams that all ranks have left, and nobody meets on."""
    for left in list(_partings):
        if not left.stalls.meets and left.stalls.all_left():
            _partings.remove(left)
            left.transport.close(release=True)


def end() -> None:
    """Tells who may look for this rank that its program ends."""
    for left in _partings:
        if left.stalls.meets:
            left.stalls.say_goodbye(0, program=True)
