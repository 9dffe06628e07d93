"""Do all ranks mean the same? The sentence that says who differs, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KIND = "operation"
"""The key of a claim under which stands what kind of call it is."""
JOINED = "joined ranks"
"""The last key of an opening's claim, under which stands whether ranks that joined are needed."""
NEEDED, WAIVED = "needed", "not needed"
REFUSED = "refused"
"""The only key of a claim in whose place a rank's call was refused: why."""

ELSEWHERE = "elsewhere"
"""The only key of a claim of a rank that does not call, but waits in another library."""


def refusal(who: str, claims: Sequence[Mapping[str, Any]]) -> str | None:
    """Which ranks' calls were refused, and why the first one's was.

    Args:
        who: what the claims are about, such as a tensor's name.
        claims: each rank's, in order of ranks.

    Returns:
        A sentence naming ``who``, the ranks and the reason; None if no call was refused.
    """
    ranks = [rank for rank, claim in enumerate(claims) if REFUSED in claim]
    if not ranks:
        return None
    why = claims[ranks[0]][REFUSED].removeprefix(f"{who}: ")
    return f"{who}: refused on {ranks_text(ranks)}: {why}"


def reason(error: BaseException) -> str:
    """What other ranks are told of an error: its sentence, and its class unless it refuses."""
    if isinstance(error, (TypeError, ValueError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def title(name: str, claims: Iterable[Mapping[str, Any]]) -> str:
    """How a sentence about a call begins: its kind, where all that say one agree, and its name."""
    kinds = {claim[KIND] for claim in claims if KIND in claim}
    return f"{kinds.pop()} {name!r}" if len(kinds) == 1 else repr(name)


def disagreement(who: str, claims: Sequence[Mapping[str, Any]]) -> str | None:
    """The first thing in which ranks differ.

    Args:
        who: what the claims are about, such as a tensor's name.
        claims: each rank's, in order of ranks, whose keys are compared in their order.

    Returns:
        A sentence naming ``who``, the key, the values and their ranks; None if all agree.
    """
    for key in dict.fromkeys(key for claim in claims for key in claim):
        ranks_of: dict[str, list[int]] = {}
        for rank, claim in enumerate(claims):
            ranks_of.setdefault(str(claim.get(key, "nothing")), []).append(rank)
        if len(ranks_of) > 1:
            parts = "; ".join(
                f"{value} on {ranks_text(ranks)}" for value, ranks in ranks_of.items()
            )
            return f"{who}: {key} differs between ranks: {parts}"
    return None


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks for a sentence: "rank 3", "ranks 0, 2"."""
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
