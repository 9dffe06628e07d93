"""What results say of the vote beside the other methods: where it wins, where it loses, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.methods.catalogue import BASELINE
from benchmarks.reporting import allreduce_table, training_table
from benchmarks.reporting.results import Result
from benchmarks.reporting.words import is_ours, tensor_text

OF_FP32 = " of fp32"
NOT_COMPARED = "local"  # exchanges nothing
# Which of hvd_sign's methods stands beside the others: of trainings, the best one that was trained.
LEADS = {"training": ("signum", "vote"), "allreduce": ("vote",)}


class Entry(NamedTuple):
    """One method's figures: seconds of a call or of an epoch, accuracy 0 to 1 where measured.

    `target_seconds` are those to a stated accuracy, where one was stated and reached.
    """

    name: str
    label: str
    seconds: float
    payload: float
    accuracy: float | None
    target_seconds: float | None = None


class Contest(NamedTuple):
    """The vote beside all other methods of the same run, at one size or in one training.

    Attributes:
        what: was exchanged or trained, in words.
        ours: the first of LEADS in the run, or else the first other vote of hvd_sign's.
        others: all methods that are no vote of hvd_sign's.
    """

    what: str
    ours: Entry
    others: list[Entry]

    @property
    def baseline(self) -> Entry | None:
        """Horovod's fp32."""
        return next((entry for entry in self.others if entry.name == BASELINE), None)

    @property
    def fastest(self) -> Entry:
        """The fastest other method."""
        return min(self.others, key=lambda entry: entry.seconds)

    def speedup(self, other: Entry) -> float:
        """How many times as fast as the other one the vote is."""
        return other.seconds / self.ours.seconds


class Loss(NamedTuple):
    """What another method does better than the vote, in words."""

    other: str
    better: str
    where: str


def contests(result: Result) -> list[Contest]:
    """One for each size, from the smallest, or for the training; none if a side is missing."""
    leads = LEADS.get(result["kind"], ())

    def place(entry: Entry) -> int:
        return leads.index(entry.name) if entry.name in leads else len(leads)

    return [
        Contest(what, ours[0], others)
        for what, entries in _entries(result)
        if (ours := sorted((e for e in entries if is_ours(e.name)), key=place))
        and (others := [e for e in entries if not is_ours(e.name) and e.name != NOT_COMPARED])
    ]


def _entries(result: Result) -> list[tuple[str, list[Entry]]]:
    if result["kind"] == "training":
        names = [method["name"] for method in result["methods"]]
        rows = zip(names, training_table.summarise(result), strict=True)
        what = f"an epoch of {result['setup']['model_text']} on {result['setup']['data_text']}"
        entries = [
            Entry(name, row.label, row.seconds, row.payload, row.accuracy, row.target_seconds)
            for name, row in rows
        ]
        return [(what, entries)]
    if result["kind"] != "allreduce":
        return []
    sizes: dict[int, list[Entry]] = {}
    for raw, row in zip(result["measured"], allreduce_table.summarise(result), strict=True):
        entry = Entry(raw["method"], row.method, row.median, row.payload, None)
        sizes.setdefault(row.size, []).append(entry)
    return [(tensor_text(size) + OF_FP32, sizes[size]) for size in sorted(sizes)]


def losses(result: Result) -> list[Loss]:
    """Every other method that is faster or more accurate than the vote somewhere."""
    held = contests(result)
    found = []
    for label in dict.fromkeys(entry.label for contest in held for entry in contest.others):
        pairs = [(c, entry) for c in held for entry in c.others if entry.label == label]
        found += _slower(pairs) + _less_accurate(pairs)
    return found


def _slower(pairs: Sequence[tuple[Contest, Entry]]) -> list[Loss]:
    lost = [(c, entry) for c, entry in pairs if entry.seconds < c.ours.seconds]
    if not lost:
        return []
    worst = max(contest.ours.seconds / entry.seconds for contest, entry in lost)
    first, last = lost[0][0].what.removesuffix(OF_FP32), lost[-1][0].what
    if len(lost) == 1:
        return [Loss(lost[0][1].label, f"{worst:.2f} times as fast", last)]
    where = f"{len(lost)} of {len(pairs)} sizes, {first} to {last}"
    return [Loss(lost[0][1].label, f"up to {worst:.2f} times as fast", where)]


def _less_accurate(pairs: Sequence[tuple[Contest, Entry]]) -> list[Loss]:
    return [
        Loss(
            entry.label,
            f"{100 * entry.accuracy:.2f} % right instead of {100 * contest.ours.accuracy:.2f} %",
            contest.what.removeprefix("an epoch of "),
        )
        for contest, entry in pairs
        if entry.accuracy is not None
        and contest.ours.accuracy is not None
        and entry.accuracy > contest.ours.accuracy
    ]


def range_text(ratios: Sequence[float]) -> str:
    """'2.5' or '1.3 to 31', times that something is as fast."""
    ends = (
        f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" for ratio in (min(ratios), max(ratios))
    )
    return " to ".join(dict.fromkeys(ends))
