"""What a check finds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"


@dataclass(frozen=True)
class Finding:
    """What a check found on one rank.

    Attributes:
        check: its name.
        state: ``"ok"``; ``"warning"``: it works, but not as well as it might; ``"failed"``: it does
            not; ``"skipped"``: there was nothing to look at.
        found: what there is.
        remedy: what to do about it.
    """

    check: str
    state: str
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


class Seen(NamedTuple):
    """A check's answer, which does not know the check's name."""

    state: str
    found: str
    remedy: str = ""


class Check(NamedTuple):
    """One thing that is looked at.

    Attributes:
        name: for the report and for ``--skip``.
        look: looks at it; whatever it raises becomes a failed finding.
    """

    name: str
    look: Callable[[], Seen]


def look_at(name: str, look: Callable[[], Seen], skip: Collection[str] = ()) -> Finding:
    """What one check finds; never raises.

    Args:
        name: the check's.
        look: the check itself.
        skip: names of checks that are not made.
    """
    if name in skip:
        return Finding(name, SKIPPED, "not asked for")
    try:
        return Finding(name, *look())
    except Exception as error:
        return Finding(name, FAILED, described(error))


def described(error: BaseException) -> str:
    """An exception in one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, RuntimeError) and said else f"{type(error).__name__}: {said}"


def numbered(ranks: Collection[int]) -> str:
    """Ranks in words, the first few of many."""
    shown = ", ".join(map(str, sorted(ranks)[:8]))
    return f"rank{'s' * (len(ranks) > 1)} {shown}{', ...' * (len(ranks) > 8)}"


def finding_of(fields: dict[str, Any]) -> Finding:
    """Of ``as_dict()``."""
    return Finding(**fields)
