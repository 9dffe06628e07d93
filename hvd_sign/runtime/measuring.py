"""Measures the cost model's constants: of the link between the ranks, the kernels, the pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from hvd_sign.algorithms import Sign
from hvd_sign.core import kernels
from hvd_sign.core.buckets import BLOCK, Bucket, TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.rounds.base import Subject
from hvd_sign.rounds.native import NativeRound, can_run_natively
from hvd_sign.transports.base import Transport
from hvd_sign.transports.communication import Buffer, Pending
from hvd_sign.transports.link import LinkModel, load_or_warn
from hvd_sign.votes import MajorityVote

SMALL, LARGE = 64, 2**18
"""Bytes of the messages that latency and bandwidth are measured with."""

SEGMENTS = 16
"""Of the vote that tells what a segment costs, each of as few blocks as can be."""

LEAST = 1e-6
"""Seconds that a segment costs, whatever a noisy measurement says."""


def measure(transport: Transport, *, seconds: float = 1.0) -> LinkModel:
    """Measures a transport and this machine's kernels; the slowest rank's figures count.

    Collective over the transport's voters; blocks.

    Args:
        transport: nothing else may be under way on it.
        seconds: about how long to measure.
    """
    nodes = transport.nodes
    layered = nodes is not None and len(nodes.members) > 1 and nodes.largest > 1
    share = (0.25 if layered else 0.7) * seconds
    size = transport.size
    latency, bandwidth = _measure_link(transport, transport.alltoall, size, size, share)
    inside: tuple[float, float] | tuple[None, None] = None, None
    between: tuple[float, float] | tuple[None, None] = None, None
    if nodes is not None and layered:
        inside = _measure_link(
            transport,
            partial(nodes.alltoall, nodes.neighbours, nodes.local),
            len(nodes.neighbours),
            nodes.largest,
            share,
        )
        group, place = (nodes.leaders, nodes.node) if nodes.leads else ((transport.rank,), 0)
        between = _measure_link(
            transport, partial(nodes.alltoall, group, place), len(group), len(nodes.members), share
        )

    coordinates, voters = 2**20, 4
    geometry = kernels.Geometry(coordinates // BLOCK, 1)
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((voters, coordinates), np.float32)
    signal = signals[0]
    messages = np.zeros(geometry.total_bytes, np.uint8)
    ballots = np.zeros((voters, geometry.total_bytes), np.uint8)
    for one, ballot in zip(signals, ballots, strict=True):
        kernels.pack(one, ballot, geometry, 0, ties=0, key=0, parity=False, ordinal=0)
    first_blocks, ordinals = np.zeros(1, np.int64), np.zeros(1, np.uint64)
    share = 0.1 * seconds
    pack = _agreed(
        transport,
        lambda: kernels.pack(signal, messages, geometry, 0, ties=0, key=0, parity=False, ordinal=0),
        share,
    )
    tally = _agreed(
        transport,
        lambda: kernels.tally(
            ballots.reshape(-1),
            geometry,
            messages,
            shard=0,
            ties=0,
            key=0,
            first_blocks=first_blocks,
            ordinals=ordinals,
        ),
        share,
    )
    apply = _agreed(transport, lambda: kernels.write_verdict(signal, messages, geometry, 0), share)
    vote, segment = _measure_pipeline(transport, share)
    return LinkModel(
        latency=latency,
        bandwidth=bandwidth,
        pack=coordinates / pack,
        tally=ballots.size / tally,
        apply=coordinates / apply,
        local_latency=inside[0],
        local_bandwidth=inside[1],
        node_latency=between[0],
        node_bandwidth=between[1],
        vote=vote,
        segment=segment,
    )


def _measure_link(
    transport: Transport,
    alltoall: Callable[[Buffer, Buffer], Pending],
    size: int,
    largest: int,
    seconds: float,
) -> tuple[float, float]:
    """Latency and bandwidth of an all-to-all among groups of voters, at the same time in all.

    Args:
        transport: on which all voters agree what they saw.
        alltoall: among this voter's group.
        size: of this voter's group.
        largest: size of the largest group, which the slowest figures belong to.
        seconds: about how long to measure.
    """
    small = np.zeros(SMALL * size, np.uint8), np.zeros(SMALL * size, np.uint8)
    large = np.zeros(LARGE * size, np.uint8), np.zeros(LARGE * size, np.uint8)
    for buffers in (small, large):
        _wait(alltoall(*buffers))
    quick = _agreed(transport, lambda: _wait(alltoall(*small)), 0.3 * seconds)
    slow = _agreed(transport, lambda: _wait(alltoall(*large)), 0.7 * seconds)
    if largest == 1:
        return quick, float("inf")
    return quick / (largest - 1), (largest - 1) * LARGE / max(slow - quick, 1e-9)


def load_or_measure(transport: Transport) -> LinkModel:
    """The constants of voter 0's file, else a measurement. Collective over the voters; blocks."""
    known = transport.gather_objects(load_or_warn() if transport.rank == 0 else None)[0]
    return known if isinstance(known, LinkModel) else measure(transport)


def _measure_pipeline(
    transport: Transport, seconds: float
) -> tuple[float, float] | tuple[None, None]:
    """What a native vote of a small segment takes, and what each further one adds; None without."""
    bucket = Bucket(0, ())
    subject = Subject(bucket, MajorityVote(), Sign(), VoteOptions(), transport, 0)
    if not can_run_natively(subject):
        return None, None
    times = []
    for blocks in (BLOCK, SEGMENTS * BLOCK):
        bucket = Bucket(0, (TensorSpec("measured", (blocks * BLOCK,), "float32", 0),))
        vote = NativeRound(subject._replace(bucket=bucket), segment_blocks=BLOCK)
        operand = Operand(HOST, np.ones(blocks * BLOCK, np.float32), None)

        def hold(vote: NativeRound = vote, operand: Operand = operand) -> None:
            for pending in vote.run(0, [operand]):
                _wait(pending)

        hold()
        times.append(_agreed(transport, hold, seconds / 2))
    return times[0], max((times[1] - times[0]) / (SEGMENTS - 1), LEAST)


def _wait(pending: Pending) -> None:
    while not pending.test():
        time.sleep(0)


def _agreed(transport: Transport, action: Callable[[], object], seconds: float) -> float:
    """Median time of ``action`` on the slowest rank; done equally often on all."""
    start = time.perf_counter()
    action()
    first = max(transport.gather_objects(time.perf_counter() - start))
    times = []
    for _ in range(max(3, min(200, int(seconds / max(first, 1e-6))))):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return float(max(transport.gather_objects(float(np.median(times)))))
