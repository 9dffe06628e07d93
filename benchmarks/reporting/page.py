"""One self-contained HTML page from any number of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import jinja2
from rich.table import Table
from rich.text import Text

from benchmarks import overlap
from benchmarks.reporting import allreduce_table, findings, plots, scaling, training_table
from benchmarks.reporting.experiments import grouped
from benchmarks.reporting.findings import Contest, range_text
from benchmarks.reporting.glossary import COLUMNS
from benchmarks.reporting.plots import Plot
from benchmarks.reporting.results import Result
from benchmarks.reporting.words import framework_text, is_ours, network_text, place_text

TEMPLATE = Path(__file__).with_name("page.html.j2")
TABLES = {
    "training": training_table.table,
    "allreduce": allreduce_table.table,
    "overlap": overlap.table,
}
WARNING = "WARNING"
MINUS, TIMES = "\u2212", "\u00d7"
TITLES = {
    "training": "Training",
    "allreduce": "One vote beside one allreduce",
    "overlap": "What hides behind backward",
}
# What a kind of plot needs, for a page without it.
NEEDED = {
    "accuracy": "accuracy against time needs a training result with accuracies",
    "epoch-time": "what the time of an epoch is made of needs a training result",
    "allreduce": "time against size needs an allreduce result",
    "bandwidth": "speed-up against bandwidth needs allreduce results of one number of workers at "
    "two rates or more, with Horovod's fp32 among the methods",
    "scaling-allreduce": "the time of a call over workers needs allreduce results of one rate with "
    "two numbers of workers or more",
    "scaling-training": "throughput over workers needs training results of one task and rate with "
    "two numbers of workers or more",
}


@dataclass(frozen=True)
class Grid:
    """A table for the page.

    Attributes:
        title: whose it is, or of what.
        columns: headers.
        left: which columns are words.
        rows: cells, all as they are shown.
        ours: which rows are votes of hvd_sign's.
    """

    title: str
    columns: list[str]
    left: list[bool]
    rows: list[list[str]]
    ours: list[bool]


@dataclass(frozen=True)
class Section:
    """Results that differ in nothing but their framework.

    Attributes:
        id: unique in the page.
        kind: of the results.
        title: what was done.
        where: workers and network.
        place: the same in a few words.
        results: one a framework.
        grids: their tables.
        plots: of all of them.
        warnings: why not to trust the figures.
        notes: what one has to know to judge the tables.
        glossary: what columns mean that no note tells of.
    """

    id: str
    kind: str
    title: str
    where: str
    place: str
    results: list[Result]
    grids: list[Grid]
    plots: list[Plot]
    warnings: list[str]
    notes: list[str]
    glossary: dict[str, str]


@dataclass(frozen=True)
class Duel:
    """A line of the overview: the vote beside the others, in the largest size of a result.

    Attributes:
        section: where its figures are.
        framework: in words.
        contest: what was compared.
    """

    section: Section
    framework: str
    contest: Contest


@dataclass(frozen=True)
class Defeat:
    """A line of the losses: what another method does better, and in which result."""

    section: Section
    framework: str
    loss: findings.Loss


@dataclass(frozen=True)
class Card:
    """A headline figure: of what, how much, in which sense."""

    title: str
    figure: str
    text: str


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        sections: in the order in which they are shown.
        across: plots over several results.
        scalings: tables over several numbers of workers of a cluster.
    """

    sections: list[Section]
    across: list[Plot]
    scalings: list[Grid]

    @property
    def results(self) -> list[Result]:
        """All of them."""
        return [result for section in self.sections for result in section.results]

    @property
    def origin(self) -> str:
        """How many results, of when, from which machines."""
        days = sorted({result["started"][:10] for result in self.results})
        machines = dict.fromkeys(
            f"{machine['cpu']} ({machine['cores']} cores)"
            for machine in (result["machine"] for result in self.results)
        )
        count = f"{len(self.results)} results" if len(self.results) > 1 else "One result"
        return f"{count}, {' to '.join(dict.fromkeys((days[0], days[-1])))}: {', '.join(machines)}."

    @property
    def plots(self) -> list[tuple[str, Plot]]:
        """Every plot, with a name that is its own."""
        own = [(f"{s.id}-{plot.name}", plot) for s in self.sections for plot in s.plots]
        return [*own, *((plot.name, plot) for plot in self.across)]

    @property
    def duels(self) -> list[Duel]:
        """The overview."""
        return [
            Duel(section, framework_text(result), held[-1])
            for section in self.sections
            for result in section.results
            if (held := findings.contests(result))
        ]

    @property
    def losses(self) -> list[Defeat]:
        """What other methods do better, and where."""
        return [
            Defeat(section, framework_text(result), loss)
            for section in self.sections
            for result in section.results
            for loss in findings.losses(result)
        ]

    @property
    def score(self) -> tuple[int, int]:
        """In how many comparisons another method is faster, and how many there are."""
        held = [contest for result in self.results for contest in findings.contests(result)]
        ratios = [contest.speedup(other) for contest in held for other in contest.others]
        return sum(ratio < 1 for ratio in ratios), len(ratios)

    @property
    def missing(self) -> list[str]:
        """What the plots that there are no data for would need."""
        drawn = [plot.name for _, plot in self.plots]
        return [
            needed
            for name, needed in NEEDED.items()
            if not any(plot.startswith(name) for plot in drawn)
        ]


def report(results: Sequence[Result]) -> Report:
    """Tables and plots of the results, those of equal measurements together."""
    groups = sorted(grouped(results), key=_order)
    sections: list[Section] = []
    for group in groups:
        sections.append(_section(group, {section.id for section in sections}))
    grids = [_scaling(runs) for runs in scaling.scalings(results)]
    return Report(sections, plots.plots_across(results), grids)


def render(shown: Report) -> str:
    """The page: HTML with its style and plots inside, and nothing to fetch or to run."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE.name).render(
        report=shown,
        cards=cards(shown),
        drawings={plot: plots.svg(plot, name) for name, plot in shown.plots},
        palette=plots.PALETTE,
    )


def cards(shown: Report) -> list[Card]:
    """The headline figures: ranges over all trainings, and over all largest sizes of calls."""
    found = []
    for kind, title in (("training", "An epoch of training"), ("allreduce", "A large tensor")):
        held = [duel.contest for duel in shown.duels if duel.section.kind == kind]
        based = [(contest, base) for contest in held if (base := contest.baseline)]
        if based:
            ratio = range_text([contest.speedup(base) for contest, base in based])
            found.append(Card(title, f"{ratio} {TIMES}", f"as fast as {based[0][1].label}"))
        if held:
            ratio = range_text([contest.speedup(contest.fastest) for contest in held])
            found.append(Card(title, f"{ratio} {TIMES}", "as fast as the fastest other method"))
        points = [
            100 * (contest.ours.accuracy - base.accuracy)
            for contest, base in based
            if contest.ours.accuracy is not None and base.accuracy is not None
        ]
        if points:
            spread = dict.fromkeys(f"{point:+.1f}" for point in (min(points), max(points)))
            text = f"percentage points beside {based[0][1].label}, after as many epochs"
            found.append(Card("Accuracy", " to ".join(spread).replace("-", MINUS), text))
        ratios = [
            base.target_seconds / contest.ours.target_seconds
            for contest, base in based
            if contest.ours.target_seconds and base.target_seconds
        ]
        if ratios:
            text = f"as fast to the stated accuracy as {based[0][1].label}"
            found.append(Card("Accuracy", f"{range_text(ratios)} {TIMES}", text))
    return found


def _order(group: list[Result]) -> tuple[int, bool, float, int]:
    """By kind, then from the slowest network to loopback, then by workers."""
    kind, network = group[0]["kind"], group[0]["network"]
    rate = network["bits_per_second"] or math.inf
    return list(TITLES).index(kind), network["mode"] == "loopback", rate, network["workers"]


def _section(group: list[Result], taken: set[str]) -> Section:
    first = group[0]
    kind, network = first["kind"], first["network"]
    stem = f"{kind}-{network['rate'] or network['mode']}-{network['workers']}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    title, where = TITLES[kind], _plain(TABLES[kind](first).title)
    if kind == "training":
        title = f"{first['setup']['model_text']} on {first['setup']['data_text']}"
        where = f"{network['workers']} workers, {network_text(first)}"
        where += f"; {' and '.join(framework_text(result) for result in group)}"
    warnings, notes = _notes(group) if kind == "training" else ([], [])
    return Section(
        id=next(name for name in names if name not in taken),
        kind=kind,
        title=title[0].upper() + title[1:],
        where=where,
        place=place_text(first),
        results=group,
        grids=[_grid(result) for result in group],
        plots=plots.plots_of(group),
        warnings=warnings,
        notes=notes,
        glossary=COLUMNS[kind],
    )


def _notes(group: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Warnings and notes; what is not true of all frameworks has the name of its own before it."""
    each = {framework_text(result): training_table.notes(result) for result in group}
    warnings: dict[str, None] = {}
    notes: dict[str, None] = {}
    for framework, found in each.items():
        for note in found:
            common = all(note in others for others in each.values())
            text = note if common else f"{framework}: {note}"
            (warnings if note.startswith(WARNING) else notes)[text] = None
    return [*warnings], [*notes]


def _grid(result: Result) -> Grid:
    """The table of a result, cell for cell the one that its benchmark prints."""
    raw = result["methods" if result["kind"] == "training" else "measured"]
    ours = [is_ours(row.get("name", row.get("method"))) for row in raw]
    return _cells(TABLES[result["kind"]](result), framework_text(result), ours)


def _scaling(runs: scaling.Scaling) -> Grid:
    ours = [is_ours(point.method) for line in runs.points.values() for point in line]
    return _cells(scaling.table(runs), runs.title, ours)


def _cells(table: Table, title: str, ours: list[bool]) -> Grid:
    cells = [[_plain(cell) for cell in column.cells] for column in table.columns]
    return Grid(
        title=title,
        columns=[_plain(column.header) for column in table.columns],
        left=[column.justify == "left" for column in table.columns],
        rows=[list(row) for row in zip(*cells, strict=True)],
        ours=ours,
    )


def _plain(cell: object) -> str:
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)
