"""What the cost model decides: a bucket's exchange, and the sizes of buckets and of chunks.

Sizes come from one formula. Work cut into n pieces, each a pipeline's next, takes
T(n) = busy + fill / n + n * overhead: whatever n is, the slowest stage is busy for as long; the
first piece must pass the other stages before (or the last one after) all of them are busy, which
takes the n-th part of the time that the other stages need for all; and each piece costs something
of its own. T is smallest at n = sqrt(fill / overhead).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from hvd_sign.buckets import BLOCK
from hvd_sign.dense import DENSE
from hvd_sign.exchanges import AUTO, EXCHANGES, Hierarchical
from hvd_sign.link import ORDINARY, Parts
from hvd_sign.options import VoteOptions
from hvd_sign.transports.base import Transport

VOTE_SECONDS = 200e-6
"""What a bucket's vote costs beside its messages, where that was not measured."""

CHUNK_SECONDS = 20e-6
"""What a chunk of the native pipeline costs beside its messages, where that was not measured."""

SMALLEST_BUCKET = 2**16
"""Bytes of fp32 gradient that a planned bucket has at least."""


def expected(exchange: str, coordinates: int, options: VoteOptions, transport: Transport) -> Parts:
    """What a vote over ``exchange``, or ``DENSE``, is expected to take; the same on all ranks."""
    model = transport.link or ORDINARY
    nodes = transport.nodes
    return model.parts(
        exchange,
        coordinates,
        transport.size,
        planes=2 if options.ties == "zero" else 1,
        nodes=[len(members) for members in nodes.members] if nodes is not None else (),
        local=options.local,
    )


def cheapest(
    coordinates: int, options: VoteOptions, transport: Transport, *, dense: bool = False
) -> str:
    """The exchange that the cost model expects to be the fastest, or ``DENSE`` if that may be.

    Args:
        coordinates: of the bucket.
        options: of the vote.
        transport: the votes'.
        dense: whether a dense allreduce is allowed.
    """
    nodes = transport.nodes
    names = list(EXCHANGES)
    if nodes is None or len(nodes.members) == 1 or nodes.largest == 1:
        names.remove(Hierarchical.name)
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


def planned_chunk_blocks(blocks: int, most: int, options: VoteOptions, transport: Transport) -> int:
    """Blocks in a chunk of the native pipeline.

    The wire and the kernels are its two stages; the shorter one is the fill.

    Args:
        blocks: of the bucket.
        most: how many a chunk may have, which it has where no constants were measured.
        options: of the votes; their exchange is the bucket's.
        transport: the votes'.
    """
    if transport.link is None:
        return most
    parts = expected(options.exchange, blocks * BLOCK, options, transport)
    overhead = parts.latency + CHUNK_SECONDS
    if transport.link.chunk is not None:
        overhead = transport.link.chunk
    count = _pieces(min(parts.wire, parts.kernels), overhead)
    return min(most, math.ceil(blocks / count))


def _pieces(fill: float, overhead: float) -> float:
    return max(1.0, math.sqrt(fill / overhead))
