"""Plots of the efficiency of weak and of strong scaling."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import NullLocator, PercentFormatter

from benchmarks.reporting import scaling
from benchmarks.reporting.plots.style import FAINT, Plot, canvas, legend, look
from benchmarks.reporting.results import Result

CAPTION = (
    "Samples a second of a worker, over those of a worker in the smallest run of the same method; "
    "the line at 100 % is ideal. A method that is slow in the smallest run scales easily: see the "
    "table for samples a second."
)


def plots(results: Sequence[Result]) -> list[Plot]:
    """One plot a group of runs that differ in nothing but their number of workers."""
    found = scaling.scalings(results)
    return [
        _plot(number, one)
        for kind in (scaling.WEAK, scaling.STRONG)
        for number, one in enumerate((one for one in found if one.kind == kind), 1)
    ]


def _plot(number: int, shown: scaling.Scaling) -> Plot:
    figure, axes = canvas(height=2.9)
    axes.axhline(1, color=FAINT, linewidth=0.8)
    for method, points in shown.points.items():
        colour, line, marker = look(method)
        axes.plot(
            [point.workers for point in points],
            [point.efficiency for point in points],
            color=colour,
            linestyle=line,
            marker=marker,
            label=points[0].label,
        )
    axes.set_xscale("log", base=2)
    sizes = sorted({point.workers for points in shown.points.values() for point in points})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("workers")
    axes.set_ylabel("efficiency")
    legend(figure, axes)
    title = f"Efficiency of {shown.kind} scaling"
    return Plot(f"efficiency-{shown.kind}-{number}", title, shown.title, CAPTION, figure)
