"""What was found, as a table or as JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hvd_sign._version import __version__
from hvd_sign.doctor.findings import FAILED, OK, SKIPPED, WARNING, Finding, finding_of, numbered

NARROWEST = 100
"""Characters of a line, at least."""


class Line(NamedTuple):
    """A finding, and the ranks that found the same."""

    finding: Finding
    ranks: list[int]


def lines_of(rank: int, own: Iterable[Finding], others: Mapping[int, Any]) -> list[Line]:
    """What ranks found, each finding once: this rank's, then what is not well on others.

    Args:
        rank: this one.
        own: its findings.
        others: by rank, ``{"host": ..., "findings": [...]}``.
    """
    lines = {finding: [rank] for finding in own}
    for other, told in sorted(others.items()):
        for finding in map(finding_of, told["findings"]):
            if finding.state in (FAILED, WARNING) or finding in lines:
                lines.setdefault(finding, []).append(other)
    places = {name: place for place, name in reversed([*enumerate(f.check for f in lines)])}
    return [Line(f, lines[f]) for f in sorted(lines, key=lambda f: places[f.check])]


def any_failed(lines: Iterable[Line]) -> bool:
    """Whether the set-up is broken."""
    return any(line.finding.state == FAILED for line in lines)


def as_json(lines: Sequence[Line], rank: int, size: int, host: str) -> str:
    """One document.

    Args:
        lines: what was found.
        rank: who says so.
        size: how many ranks there are.
        host: this rank's.
    """
    checks = [{**line.finding.as_dict(), "ranks": line.ranks} for line in lines]
    head = {"version": __version__, "ok": not any_failed(lines)}
    return json.dumps({**head, "rank": rank, "size": size, "host": host, "checks": checks})


def as_table(lines: Sequence[Line], rank: int, size: int, host: str) -> str:
    """For reading: state, check, what was found, and a remedy below it. Arguments as above."""
    room = max((len(line.finding.check) for line in lines), default=0)
    rows = [f"hvd_sign {__version__}, rank {rank} of {size} on {host}"]
    for finding, ranks in lines:
        # What is well everywhere needs no ranks, nor does what one rank alone could find.
        where = "" if ranks == [rank] or finding.state in (OK, SKIPPED) else f"{numbered(ranks)}: "
        rows += _row(f"{finding.state:<8} {finding.check:<{room}} ", where + finding.found)
        if finding.remedy:
            rows += _row(" " * (room + 10), f"-> {finding.remedy}")
    states = [line.finding.state for line in lines]
    counts = ", ".join(f"{states.count(state)} {state}" for state in (FAILED, WARNING, OK, SKIPPED))
    return "\n".join([*rows, counts])


def _row(head: str, words: str) -> list[str]:
    width = max(shutil.get_terminal_size((NARROWEST, 0)).columns, NARROWEST)
    indent = " " * len(head)
    wrapped = textwrap.wrap(
        words, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
    )
    return wrapped or [head]
