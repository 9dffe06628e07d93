"""Sessions of a few tensors, and steps of them, for what is added from outside."""

from __future__ import annotations

import numpy as np

from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.standalone import ranks as hvd
from hvd_sign.votes import MajorityVote

SHAPES = ((9001,), (3, 70), (0,), (64,))
STEPS = 4
CHUNK = 4096
RULE = MajorityVote()
SPECS = [TensorSpec(f"t{i}", shape, "float32", i) for i, shape in enumerate(SHAPES)]


def session(world, rule=RULE, **options):
    return hvd.ranks().world.session(
        range(world.size), None, SPECS, rule, VoteOptions(**options), bucket_bytes=40_000
    )


def gradient(rank, step, shape):
    return np.random.default_rng([rank, step, *shape]).standard_normal(shape).astype(np.float32)


def take_step(votes, given, step):
    """One step; returns the verdicts, and whether it counts."""
    outs = {}
    for ordinal, (shape, array) in enumerate(zip(SHAPES, given, strict=True)):
        outs[ordinal] = np.full(shape, 7, np.float32)
        if array is not None:
            votes.ready(ordinal, Operand(HOST, array, outs[ordinal]))
    counts = votes.finish(lambda ordinal: Operand(HOST, None, outs[ordinal]))
    return outs, counts


def ran_natively(votes):
    return votes.stream.transport.size == 1 or votes.stream.transport.native is not None


def reference_momentum(v, gradient, beta, unscale=1.0):
    """v in fp32, chunk by chunk: one that is not finite stays as it was, and is not voted on."""
    b, c = np.float32(beta), np.float32(1 - beta)
    with np.errstate(all="ignore"):
        new = b * v + c * (gradient * np.float32(unscale))
    signal = new.copy().reshape(-1)
    kept = new.copy().reshape(-1)
    for start in range(0, signal.size, CHUNK):
        run = slice(start, start + CHUNK)
        if not np.isfinite(signal[run]).all():
            kept[run] = v.reshape(-1)[run]
            signal[run] = np.nan
    return signal.reshape(v.shape), kept.reshape(v.shape)
