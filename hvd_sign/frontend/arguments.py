"""What a user's arguments ask of a binding's operation: a vote, and which, or none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from hvd_sign.algorithms import make_algorithm
from hvd_sign.core.options import VoteOptions, positive_factor
from hvd_sign.core.training import TrainingOptions, split_keywords
from hvd_sign.exchanges import check_exchange
from hvd_sign.frontend.choice import Choice, make_choice
from hvd_sign.frontend.compression import SignCompressor
from hvd_sign.runtime.sessions import BUCKET_BYTES
from hvd_sign.votes import MajorityVote, is_vote_rule, make_rule


def op_of(compression: Any, op: Any, none: Any) -> Any:
    """The operation that two arguments ask for: a compressor of signs alone asks for a vote.

    Args:
        compression: a compressor of the binding's.
        op: a vote rule, an operation of Horovod's, or None.
        none: the binding's ``Compression.none``.

    Raises:
        ValueError: they contradict each other, or ``op`` is a name.
        TypeError: ``compression`` is what makes a compressor, and was not called.
    """
    if isinstance(op, str):
        make_rule(op)
    if not hasattr(compression, "compress") and callable(compression):
        name = getattr(compression, "__name__", compression)
        raise TypeError(
            f"compression: expected a compressor, such as hvd.Compression.{name}(), got "
            f"hvd.Compression.{name} itself, which makes one"
        )
    if isinstance(compression, SignCompressor):
        if op is None:
            return MajorityVote
        if not is_vote_rule(op):
            raise ValueError(
                f"compression: {compression!r} packs ballots, which need op=hvd.MajorityVote, got "
                f"op={op!r}"
            )
    elif is_vote_rule(op) and compression is not none:
        raise ValueError(
            f"compression: op={make_rule(op)} sends ballots; expected hvd.Compression.sign or "
            f"none, got {compression!r}"
        )
    return op


def keywords_of(compression: Any, given: dict[str, Any]) -> dict[str, Any]:
    """A vote's keywords, and the algorithm of its compressor among them.

    Raises:
        ValueError: another one is given too.
    """
    if not isinstance(compression, SignCompressor):
        return given
    algorithm = given.get("algorithm")
    if algorithm is None:
        return {**given, "algorithm": compression.algorithm}
    own = compression.algorithm
    if not own.is_gradient and make_algorithm(algorithm) != own:
        raise ValueError(f"algorithm: compression={compression!r} has its own, got {algorithm!r}")
    return given


def op_of_call(
    compression: Any,
    op: Any,
    none: Any,
    given: dict[str, Any],
    refusing: Callable[[], AbstractContextManager[None]],
) -> tuple[Any, dict[str, Any]]:
    """``op_of`` and ``keywords_of`` for a single call, whose options of votes need a vote.

    Args:
        compression, op, none: of ``op_of``.
        given: the options.
        refusing: within it, what refuses the call is told to the ranks that may vote.

    Raises:
        ValueError: they contradict each other.
        TypeError: no vote has such an option.
    """
    try:
        op = op_of(compression, op, none)
        if not is_vote_rule(op):
            refuse_vote_options(given)
        return op, keywords_of(compression, given)
    except (TypeError, ValueError):
        with refusing():
            raise


def vote_options(given: dict[str, Any]) -> VoteOptions:
    """Options from keywords, of which None ones take their defaults; checked."""
    chosen = {name: value for name, value in given.items() if value is not None}
    algorithm = make_algorithm(chosen.pop("algorithm", VoteOptions.algorithm))
    options = VoteOptions(**chosen, algorithm=algorithm)
    check_exchange(options.exchange)
    return options


def free_of_loss_scale(options: VoteOptions) -> bool:
    """Whether verdicts are as large whatever factor the gradients carry.

    They are +-1, or as large as a signal that an algorithm has made of unscaled gradients.
    """
    return options.scale == "none" or not options.algorithm.is_gradient


def call_options(given: dict[str, Any]) -> VoteOptions:
    """The options of a single vote.

    Raises:
        ValueError: unknown or contradictory ones, or one that only an optimizer's votes have.
    """
    options = vote_options(given)
    if options.nonfinite == "skip":
        raise ValueError(
            "nonfinite: 'skip' leaves out an optimizer's step; an allreduce can only 'abstain'"
        )
    return options


def refuse_vote_options(given: dict[str, Any], **others: Any) -> None:
    """Raises if an option of votes, or one of ``others``, is given where nothing is voted on.

    Raises:
        TypeError: no vote has such an option.
        ValueError: only votes have it.
    """
    vote_options(given)
    extra = [name for name, value in {**given, **others}.items() if value is not None]
    if extra:
        raise ValueError(
            f"{', '.join(extra)}: only a vote has such options; give op=hvd.MajorityVote too"
        )


def let_scaler_skip(vote: dict[str, Any], scaler: str) -> None:
    """Gives votes under a loss scaler the option by which it sees what was skipped.

    Raises:
        ValueError: another one was given.
    """
    if vote.get("nonfinite") is None:
        vote["nonfinite"] = "skip"
    if vote["nonfinite"] != "skip":
        raise ValueError(f"nonfinite: {scaler} needs 'skip', so that it sees what was skipped")


class GradientSettings(NamedTuple):
    """What an optimizer's or a tape's arguments say of the exchange of its gradients.

    Attributes:
        options: of a vote; None: nothing is voted on.
        training: what else is done with gradients that are voted on.
        choice: which of them are.
        bucket_bytes: of gradients that share messages.
        groups: of gradients that share messages, as Horovod has them; None: no groups.
    """

    options: VoteOptions | None
    training: TrainingOptions
    choice: Choice
    bucket_bytes: int | str
    groups: Any


def gradient_settings(
    op: Any,
    vote: dict[str, Any],
    *,
    scaler: str | None,
    bucket_bytes: int | str | None,
    vote_if: Any,
    min_size: Any,
    passes: int,
    predivide: float,
    num_groups: int,
    groups: Any,
) -> GradientSettings:
    """Reads and checks the arguments that all optimizers and tapes have.

    Args:
        op: what ``op_of()`` says.
        vote: a vote's keywords, and those of ``TrainingOptions``.
        scaler: what sees skipped steps of a vote, if there is such a thing, for messages.
        bucket_bytes: None: the default.
        vote_if, min_size: of ``make_choice``.
        passes: ``backward_passes_per_step``.
        predivide: ``gradient_predivide_factor``.
        num_groups: older than ``groups``, which precedes it.
        groups: as Horovod has them.

    Raises:
        ValueError: contradictory or unknown ones.
        TypeError: unknown keywords, or a choice that is none.
    """
    options = None
    vote, training = split_keywords(vote)
    if is_vote_rule(op):
        if scaler is not None:
            let_scaler_skip(vote, scaler)
        options = vote_options(vote)
    else:
        refuse_vote_options(
            vote, bucket_bytes=bucket_bytes, vote_if=vote_if, min_size=min_size, **training
        )
    positive_factor("gradient_predivide_factor", predivide)
    if passes <= 0:
        raise ValueError("backward_passes_per_step must be > 0")
    bucket_bytes = BUCKET_BYTES if bucket_bytes is None else bucket_bytes
    return GradientSettings(
        options,
        TrainingOptions(**training),
        make_choice(vote_if, min_size),
        bucket_bytes,
        groups if groups is not None else (num_groups or None),
    )


def number(argument: str, value: Any) -> float:
    """A factor that a call was given. Raises TypeError: it is no number."""
    if not hasattr(value, "__float__"):
        raise TypeError(f"{argument}: expected a number, got {value!r}")
    return float(value)


def labels(name: str | None, count: int) -> list[str]:
    """What messages call the tensors of a call of that name."""
    name = name or "tensor"
    return [name] if count == 1 else [f"{name}[{position}]" for position in range(count)]
