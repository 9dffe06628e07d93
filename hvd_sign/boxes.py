"""Which kind of ballot box a bucket gets."""

from __future__ import annotations

from dataclasses import replace

from hvd_sign.algorithms import Algorithm
from hvd_sign.ballots import BallotBox
from hvd_sign.buckets import BLOCK, Bucket
from hvd_sign.exchanges import AUTO, EXCHANGES
from hvd_sign.link import ORDINARY
from hvd_sign.options import VoteOptions
from hvd_sign.pipeline import PipelinedBox, can_pipeline
from hvd_sign.stepwise import StepwiseBox
from hvd_sign.transports.base import Transport
from hvd_sign.votes import VoteRule


def make_box(
    bucket: Bucket,
    rule: VoteRule,
    algorithm: Algorithm,
    options: VoteOptions,
    transport: Transport,
    stream: int,
) -> BallotBox:
    """A pipelined box where the transport and the vote allow it, else a stepwise one.

    All ranks choose alike: they have agreed on everything that this depends on.
    """
    if options.exchange == AUTO:
        options = replace(options, exchange=cheapest(bucket, options, transport))
    pipelined = can_pipeline(rule, algorithm, options, transport)
    kind = PipelinedBox if pipelined else StepwiseBox
    return kind(bucket, rule, algorithm, options, transport, stream)


def cheapest(bucket: Bucket, options: VoteOptions, transport: Transport) -> str:
    """The exchange that the cost model expects to be the fastest for a bucket."""
    model = transport.link or ORDINARY
    planes = 2 if options.ties == "zero" else 1

    def seconds(exchange: str) -> float:
        return model.seconds(exchange, bucket.blocks * BLOCK, transport.size, planes=planes)

    return min(EXCHANGES, key=seconds)
