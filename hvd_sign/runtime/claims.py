"""What ranks agree on before a session's first vote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from hvd_sign.core.agreement import REFUSED, disagreement, reason, refusal
from hvd_sign.core.buckets import TensorSpec, check_bucket_bytes
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.training import TrainingOptions
from hvd_sign.engine.progress import Stream
from hvd_sign.errors import DisagreementError
from hvd_sign.rounds.base import Round
from hvd_sign.rounds.choice import check_possible, foreign, terms
from hvd_sign.votes import VoteRule


def made_alike(
    stream: Stream, options: VoteOptions, make: Callable[[], list[Round]]
) -> list[Round]:
    """What ``make`` plans by the costs of exchanges, once ranks agree on it if any is the user's.

    Raises:
        DisagreementError: on all ranks alike: they planned differently, or one could not plan.
    """
    if not foreign(options):
        return make()
    rounds, refused = list[Round](), None
    try:
        rounds = make()
        claim: dict[str, Any] = {
            "exchanges": [vote.options.exchange for vote in rounds],
            "blocks": [vote.bucket.blocks for vote in rounds],
            "segments": [vote.segments for vote in rounds],
        }
    except Exception as error:  # whatever it is, the others would wait for this rank
        refused, claim = error, {REFUSED: reason(error)}
    claims = stream.transport.gather_objects(claim)
    if refused is not None:
        raise refused
    who = "planning"
    sentence = refusal(who, claims) or disagreement(who, claims)
    if sentence is not None:
        raise DisagreementError(sentence)
    return rounds


def agree_on_session(
    stream: Stream,
    specs: Sequence[TensorSpec],
    rule: VoteRule,
    options: VoteOptions,
    training: TrainingOptions,
    bucket_bytes: int | str,
    groups: Sequence[Sequence[int]] | None,
) -> None:
    """Raises the same DisagreementError on every rank if they differ in anything that matters.

    On a rank whose arguments are refused it raises the reason, and on the others that one was.
    """
    refused: Exception | None = None
    claim = {"op": repr(rule), **options.claim(), **training.claim()}
    try:
        check_bucket_bytes(bucket_bytes)
        check_possible(options, stream.transport, rule)
        claim |= terms(options, stream.transport, rule)
    except Exception as error:  # whatever it is, the others would wait for this rank
        refused, claim = error, {REFUSED: reason(error)}
    shared: dict[str, Any] = {"groups": None, "bucket_bytes": bucket_bytes}
    if groups is not None:
        shared = {"groups": [sorted(group) for group in groups], "bucket_bytes": None}
    digest = sha256(repr((claim, list(specs), shared)).encode()).digest()
    same = len(set(stream.transport.gather_objects(digest))) == 1
    claims = [] if same else stream.transport.gather_objects((claim, list(specs), shared))
    if refused is not None:
        raise refused
    if same:
        return
    told = [theirs[0] for theirs in claims]
    sentence = refusal("DistributedOptimizer", told) or disagreement("DistributedOptimizer", told)
    tensors = [{spec.ordinal: vars(spec) for spec in theirs[1]} for theirs in claims]
    for ordinal in sorted(set().union(*tensors)):
        if sentence is not None:
            break
        rows = [theirs.get(ordinal, {}) for theirs in tensors]
        name = next(row["name"] for row in rows if row)
        nothing = dict.fromkeys(vars(TensorSpec("", (), "", 0)), "nothing")
        sentence = disagreement(f"parameter {name!r}", [{**nothing, **row} for row in rows])
    if sentence is None:
        sentence = disagreement("DistributedOptimizer", [theirs[2] for theirs in claims])
    raise DisagreementError(sentence)
