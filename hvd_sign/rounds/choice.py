"""Which kind of round a bucket gets."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from hashlib import sha256
from itertools import pairwise
from numbers import Integral
from typing import Any
from weakref import WeakSet

from hvd_sign.algorithms import make_algorithm
from hvd_sign.core.buckets import BLOCK, Bucket
from hvd_sign.core.options import AUTO, VoteOptions
from hvd_sign.exchanges import EXCHANGES, OWN, Exchange, get_exchange
from hvd_sign.exchanges.planning import DENSE, cheapest, expected
from hvd_sign.rounds.base import Round, Subject
from hvd_sign.rounds.dense import DenseRound
from hvd_sign.rounds.native import NativeRound, can_run_natively
from hvd_sign.rounds.reference import ReferenceRound
from hvd_sign.transports.base import Transport
from hvd_sign.votes import VoteRule, initial_of, weights_of

logger = logging.getLogger("hvd_sign")

LONGEST_TABLE = 200
"""Characters of a table of owners that ranks tell one another as it is."""

_told: WeakSet[Transport] = WeakSet()


def make_round(subject: Subject) -> Round:
    """A native round where the transport and the vote allow it, else the reference.

    With ``fallback`` it is a dense one where the cost model expects that to be the fastest.
    All ranks choose alike: they have agreed on everything that this depends on.
    """
    if subject.options.exchange == AUTO:
        # Only the sign of a gradient, by majority, has a mean in its place.
        summable = subject.rule.counts_once and subject.algorithm.is_gradient
        options = choose_exchange(
            subject.bucket,
            subject.options,
            subject.transport,
            dense=summable,
            weighs=subject.rule.weighs or subject.rule.learns or subject.algorithm.averages,
        )
        subject = subject._replace(options=options)
    if subject.options.exchange == DENSE:
        return DenseRound(subject)
    return NativeRound(subject) if can_run_natively(subject) else ReferenceRound(subject)


def choose_exchange(
    bucket: Bucket,
    options: VoteOptions,
    transport: Transport,
    *,
    dense: bool = True,
    weighs: bool = False,
) -> VoteOptions:
    """The options with the exchange that suits a bucket in the place of ``"auto"``.

    Args:
        bucket: the tensors.
        options: whose ``fallback`` may allow a dense allreduce.
        transport: connects the voters.
        dense: False if nothing can fall back.
        weighs: the rule weighs ranks, or their mean is taken.
    """
    coordinates = bucket.blocks * BLOCK
    dense = dense and options.fallback is not None
    chosen = cheapest(coordinates, options, transport, dense=dense, weighs=weighs)
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
    local = options.local if chosen != DENSE and get_exchange(chosen).local else "vote"
    return replace(options, exchange=chosen, local=local, fallback=None)


def check_possible(options: VoteOptions, transport: Transport, rule: VoteRule) -> None:
    """Raises ValueError, the same on all ranks, if a transport or a rule cannot hold such votes."""
    if options.exchange != AUTO:
        why = get_exchange(options.exchange).impossible(transport)
        if why is not None:
            raise ValueError(f"exchange: {options.exchange!r} {why}")
        if (rule.weighs or rule.learns) and not get_exchange(options.exchange).of_ranks:
            does = "weighs" if rule.weighs else "learns of"
            raise ValueError(
                f"exchange: {options.exchange!r} counts ballots of nodes, but op={rule} {does} "
                "ranks"
            )
    algorithm = make_algorithm(options.algorithm)
    if algorithm.averages:
        if not rule.counts_once:
            raise ValueError(
                f"op: algorithm={algorithm!r} takes the mean of what ranks say, which no rule "
                f"decides; expected MajorityVote, got {rule}"
            )
        if options.exchange != AUTO and not get_exchange(options.exchange).of_ranks:
            raise ValueError(
                f"exchange: {options.exchange!r} counts ballots of nodes, but "
                f"algorithm={algorithm!r} takes the mean of the ranks'"
            )
    if algorithm.feedback and options.scale != "mean_abs":
        raise ValueError(
            f"scale: algorithm={algorithm!r} keeps what its mean absolute value, sent with the "
            f"signs, leaves unsaid; expected 'mean_abs', got {options.scale!r}"
        )
    if options.local == "mean" and not algorithm.is_gradient:
        raise ValueError(
            "local: 'mean' adds up a node's gradients, before any algorithm sees them; expected "
            f"'vote' with algorithm={options.algorithm!r}"
        )


def terms(options: VoteOptions, transport: Transport, rule: VoteRule) -> dict[str, Any]:
    """What a rule and an exchange of the user's say of a vote, on which ranks have to agree.

    Raises:
        ValueError: it is not what a vote can be held by.
    """
    voters, said = transport.size, dict[str, Any]()
    weights = weights_of(rule, initial_of(rule, voters), voters)
    if weights is not None:
        said["weights"] = weights.tolist()
    names = foreign(options)
    if names:
        said["exchanges"] = names
        said["owners"] = {name: _owners(get_exchange(name), voters) for name in names}
    return said


def foreign(options: VoteOptions) -> list[str]:
    """The user's exchanges that may hold such votes: what they say may differ between ranks."""
    names = sorted(EXCHANGES) if options.exchange == AUTO else [options.exchange]
    return [name for name in names if name not in OWN]


@cache
def _owners(exchange: type[Exchange], voters: int) -> str:
    """The exchange's table, checked, as ranks tell it to one another: a long one by its digest."""
    given = exchange.owners(voters)
    if given is None and exchange.run is not Exchange.run:
        return "none"
    try:
        table = [list(shard) for shard in (() if given is None else given)]
    except TypeError:
        table = []
    for shard in table:
        if not shard or not all(isinstance(o, Integral) and 0 <= o < voters for o in shard):
            break
        if any(a >= b for a, b in pairwise(shard)):
            break
    else:
        if table:
            text = str([[int(owner) for owner in shard] for shard in table])
            return text if len(text) <= LONGEST_TABLE else sha256(text.encode()).hexdigest()
    raise ValueError(
        f"exchange: {exchange.name!r}: owners(): expected for each shard some of the voters 0 to "
        f"{voters - 1}, ascending, got {given!r}"
    )
