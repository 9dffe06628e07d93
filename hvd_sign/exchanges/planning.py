"""What the cost model decides: a bucket's exchange, and the sizes of buckets and of segments.

Sizes come from one formula. Work cut into n pieces, each a pipeline's next, takes
T(n) = busy + fill / n + n * overhead: whatever n is, the slowest stage is busy for as long; the
first piece must pass the other stages before (or the last one after) all of them are busy, which
takes the n-th part of the time that the other stages need for all; and each piece costs something
of its own. T is smallest at n = sqrt(fill / overhead).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from hvd_sign.core.buckets import BLOCK
from hvd_sign.core.options import AUTO, VoteOptions
from hvd_sign.exchanges import EXCHANGES, get_exchange
from hvd_sign.exchanges.base import Load
from hvd_sign.transports.base import Transport
from hvd_sign.transports.link import ORDINARY, LinkModel, Parts

VOTE_SECONDS = 200e-6
"""What a bucket's vote costs beside its messages, where that was not measured."""

SEGMENT_SECONDS = 20e-6
"""What a segment of the native engine costs beside its messages, where that was not measured."""

SMALLEST_BUCKET = 2**16
"""Bytes of fp32 gradient that a planned bucket has at least."""


DENSE = "dense"
"""What stands in the place of an exchange's name where a bucket is not voted on."""


def expected(exchange: str, coordinates: int, options: VoteOptions, transport: Transport) -> Parts:
    """What a vote over ``exchange``, or ``DENSE``, is expected to take; the same on all ranks."""
    nodes = transport.nodes
    load = Load(
        coordinates,
        transport.size,
        planes=2 if options.ties == "zero" else 1,
        nodes=tuple(len(members) for members in nodes.members) if nodes is not None else (),
        local=options.local,
    )
    link = transport.link or ORDINARY
    return (
        dense_parts(link, load) if exchange == DENSE else get_exchange(exchange).parts(link, load)
    )


def dense_parts(link: LinkModel, load: Load) -> Parts:
    """A ring allreduce in fp32, whose copies and sums count as packing and applying do."""
    others = load.voters - 1
    sent = 8 * others / load.voters * load.coordinates
    return Parts(2 * others * link.latency, sent / link.bandwidth, load.ends(link))


def cheapest(
    coordinates: int,
    options: VoteOptions,
    transport: Transport,
    *,
    dense: bool = False,
    weighs: bool = False,
) -> str:
    """The exchange that the cost model expects to be the fastest, or ``DENSE`` if that may be.

    Args:
        coordinates: of the bucket.
        options: of the vote.
        transport: the votes'.
        dense: whether a dense allreduce is allowed.
        weighs: whether the rule weighs ranks.
    """
    names = [
        name
        for name, kind in EXCHANGES.items()
        if kind.worthwhile(transport) and (kind.of_ranks or not weighs)
    ]
    if dense:
        names.append(DENSE)
    return min(names, key=lambda name: sum(expected(name, coordinates, options, transport)))


def planned_bucket_bytes(sizes: Iterable[int], options: VoteOptions, transport: Transport) -> int:
    """Bytes of fp32 gradient in a bucket, for ``bucket_bytes="auto"``.

    Backward keeps all buckets but the last from being waited for. Its whole vote is the fill, and
    each bucket's overhead is that of its messages.

    Args:
        sizes: of the tensors, in coordinates.
        options: of the votes.
        transport: the votes'.
    """
    total = sum(sizes)
    exchange = options.exchange
    if exchange == AUTO:
        exchange = cheapest(total, options, transport)
    parts = expected(exchange, total, options, transport)
    overhead = parts.latency + VOTE_SECONDS
    if transport.link is not None and transport.link.vote is not None:
        overhead = transport.link.vote
    count = _pieces(parts.wire + parts.kernels, overhead)
    return max(SMALLEST_BUCKET, math.ceil(4 * total / count))


def planned_segment_blocks(
    blocks: int, most: int, options: VoteOptions, transport: Transport
) -> int:
    """Blocks in a segment of the native engine.

    The wire and the kernels are its two stages; the shorter one is the fill.

    Args:
        blocks: of the bucket.
        most: how many a segment may have, which it has where no constants were measured.
        options: of the votes; their exchange is the bucket's.
        transport: the votes'.
    """
    if transport.link is None:
        return most
    parts = expected(options.exchange, blocks * BLOCK, options, transport)
    overhead = parts.latency + SEGMENT_SECONDS
    if transport.link.segment is not None:
        overhead = transport.link.segment
    count = _pieces(min(parts.wire, parts.kernels), overhead)
    return min(most, math.ceil(blocks / count))


def _pieces(fill: float, overhead: float) -> float:
    return max(1.0, math.sqrt(fill / overhead))
