"""What ranks agree on before process sets are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hvd_sign.errors import DisagreementError
from hvd_sign.standalone.process_sets import ProcessSet

if TYPE_CHECKING:
    from mpi4py import MPI


class Claim(NamedTuple):
    """A process set as a rank knows it.

    Attributes:
        ranks: in ascending order.
        split: it was made of a communicator, so that every rank has only that of its own ranks.
        number: under which it is registered already.
    """

    ranks: tuple[int, ...]
    split: bool
    number: int | None


def agree(
    communicator: MPI.Intracomm, process_sets: Sequence[ProcessSet], known: Collection[ProcessSet]
) -> list[tuple[list[int], ProcessSet]]:
    """The process sets to register, in the same order on all ranks, with their ranks.

    Of communicators each rank has its own: all ranks' are registered, each once. Collective.

    Args:
        communicator: of all ranks.
        process_sets: this rank's.
        known: registered before.

    Raises:
        ValueError: on all ranks alike: one is registered, has a rank that there is not, or ranks
            differ in it.
    """
    mine = [_claim(communicator, process_set) for process_set in process_sets]
    everyone: list[list[Claim]] = communicator.allgather(mine)
    listed = [[claim.ranks for claim in claims if not claim.split] for claims in everyone]
    if any(ranks != listed[0] for ranks in listed):
        said = "; ".join(f"{_shown(ranks)} on rank {rank}" for rank, ranks in enumerate(listed))
        raise DisagreementError(f"process_set: ranks differ in it: {said}")
    split = {claim.ranks for claims in everyone for claim in claims if claim.split}
    wanted = [*listed[0], *sorted(split)]
    taken = {tuple(other.members()): other for other in known}
    for claims in everyone:
        for claim in claims:
            _check(claim, claims, everyone, taken)
    own = dict(zip((claim.ranks for claim in mine), process_sets, strict=True))
    return [(list(ranks), own.get(ranks) or ProcessSet(ranks)) for ranks in wanted]


def _claim(communicator: MPI.Intracomm, process_set: ProcessSet) -> Claim:
    ranks, own = process_set.ranks, process_set.mpi_comm
    if ranks is None and own is not None:
        theirs = own.Get_group()
        everyone = list(range(theirs.Get_size()))
        ranks = sorted(theirs.Translate_ranks(everyone, communicator.Get_group()))
    return Claim(tuple(ranks or ()), own is not None, process_set.process_set_id)


def _check(
    claim: Claim,
    claims: Sequence[Claim],
    everyone: Sequence[Sequence[Claim]],
    taken: dict[tuple[int, ...], ProcessSet],
) -> None:
    """Raises ValueError if one of a rank's process sets cannot be registered."""
    ranks = list(claim.ranks)
    if claim.number is not None:
        raise ValueError(f"process_set: {ranks} is registered already, as number {claim.number}")
    if not 0 <= min(ranks) <= max(ranks) < len(everyone):
        raise ValueError(f"process_set: expected ranks below {len(everyone)}, got {ranks}")
    if claim.ranks in taken:
        raise ValueError(f"process_set: its ranks are those of {taken[claim.ranks]}")
    if [other.ranks for other in claims].count(claim.ranks) > 1:
        raise ValueError(f"process_set: {ranks} is given twice")
    absent = [rank for rank in ranks if claim.ranks not in {c.ranks for c in everyone[rank]}]
    if absent:
        raise DisagreementError(f"process_set: {ranks} is not given by its ranks {absent}")


def _shown(ranks: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(list(some)) for some in ranks) or "none"
