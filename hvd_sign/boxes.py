"""Which kind of ballot box a bucket gets."""

from __future__ import annotations

import logging
from dataclasses import replace
from weakref import WeakSet

from hvd_sign.algorithms import Algorithm, Sign
from hvd_sign.ballots import BallotBox
from hvd_sign.buckets import BLOCK, Bucket
from hvd_sign.dense import DENSE, DenseBox
from hvd_sign.exchanges import AUTO, Hierarchical
from hvd_sign.options import VoteOptions
from hvd_sign.pipeline import PipelinedBox, can_pipeline
from hvd_sign.planning import cheapest, expected
from hvd_sign.stepwise import StepwiseBox
from hvd_sign.transports.base import Transport
from hvd_sign.votes import MajorityVote, VoteRule

logger = logging.getLogger("hvd_sign")

_told: WeakSet[Transport] = WeakSet()


def make_box(
    bucket: Bucket,
    rule: VoteRule,
    algorithm: Algorithm,
    options: VoteOptions,
    transport: Transport,
    stream: int,
) -> BallotBox:
    """A pipelined box where the transport and the vote allow it, else a stepwise one.

    With ``fallback`` it is a dense one where the cost model expects that to be the fastest.
    All ranks choose alike: they have agreed on everything that this depends on.
    """
    kind: type[BallotBox]
    if options.exchange == AUTO:
        # Only the sign of a gradient, by majority, has a mean in its place.
        summable = type(rule) is MajorityVote and type(algorithm) is Sign
        options = choose_exchange(bucket, options, transport, dense=summable)
    if options.exchange == DENSE:
        kind = DenseBox
    elif can_pipeline(rule, algorithm, options, transport):
        kind = PipelinedBox
    else:
        kind = StepwiseBox
    return kind(bucket, rule, algorithm, options, transport, stream)


def choose_exchange(
    bucket: Bucket, options: VoteOptions, transport: Transport, *, dense: bool = True
) -> VoteOptions:
    """The options with the exchange that suits a bucket in the place of ``"auto"``.

    Args:
        bucket: the tensors.
        options: whose ``fallback`` may allow a dense allreduce.
        transport: connects the voters.
        dense: False if nothing can fall back.
    """
    coordinates = bucket.blocks * BLOCK
    dense = dense and options.fallback is not None
    chosen = cheapest(coordinates, options, transport, dense=dense)
    if chosen == DENSE and transport not in _told:
        _told.add(transport)
        if transport.rank == 0:
            voted = cheapest(coordinates, options, transport)
            summed, polled = (
                1e3 * sum(expected(name, coordinates, options, transport))
                for name in (DENSE, voted)
            )
            logger.warning(
                "%s goes by a dense fp32 allreduce, which is expected to take %.3g ms; a %s vote "
                "would take %.3g ms (fallback='allreduce'; other buckets are not told)",
                bucket,
                summed,
                voted,
                polled,
            )
    local = options.local if chosen == Hierarchical.name else "vote"
    return replace(options, exchange=chosen, local=local, fallback=None)


def check_possible(options: VoteOptions, transport: Transport) -> None:
    """Raises ValueError, the same on every rank, if a transport cannot hold such votes."""
    if options.exchange == Hierarchical.name and transport.nodes is None:
        raise ValueError(
            "exchange: 'hierarchical' needs MPI, which tells who shares a node; over Horovod's own "
            "collectives expected 'sharded', 'allgather' or 'auto'"
        )
