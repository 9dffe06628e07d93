"""Which kind of ballot box a bucket gets."""

from __future__ import annotations

from hvd_sign.algorithms import Algorithm
from hvd_sign.ballots import BallotBox
from hvd_sign.buckets import Bucket
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
    pipelined = can_pipeline(rule, algorithm, transport)
    kind = PipelinedBox if pipelined else StepwiseBox
    return kind(bucket, rule, algorithm, options, transport, stream)
