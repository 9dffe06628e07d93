"""Plots over several results: speed-up against bandwidth, and scaling over workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from benchmarks.reporting import allreduce_table, training_table
from benchmarks.reporting.experiments import by_age, place
from benchmarks.reporting.plots.style import FAINT, Plot, canvas, legend, log_ticks, look
from benchmarks.reporting.results import Result
from benchmarks.reporting.words import framework_text, network_text, rate_text, tensor_text

BANDWIDTH_CAPTION = (
    "How many times as fast as Horovod's fp32 of the same run, against the bandwidth that a host "
    "was measured to have before that run; both on logarithmic scales. Below the line at 1, "
    "Horovod's fp32 is faster. Runs on loopback have no bandwidth and are left out."
)
CALLS_CAPTION = (
    "Median time of a call against the number of workers; lower is better. Emulated workers share "
    "the cores of one machine, so that more of them are slower for want of cores too."
)
TRAINING_CAPTION = (
    "Samples a second of all workers together against their number; higher is better. Emulated "
    "workers share the cores of one machine, so that more of them do not compute faster."
)


class Record(NamedTuple):
    """One method's figure in one result.

    Attributes:
        line: what all points of a plot have in common.
        size: of the tensor; a plot shows one, the largest that most results have.
        at: what the points of a curve differ in.
        x, y: where the point is drawn.
        method, label: whose it is.
    """

    line: tuple[Hashable, ...]
    size: int
    at: Hashable
    x: float
    y: float
    method: str
    label: str


class Curves(NamedTuple):
    """The points of one plot, by method; each curve is {x: y}."""

    size: int
    labels: dict[str, str]
    points: dict[str, dict[float, float]]


def plots(results: Sequence[Result]) -> list[Plot]:
    """All plots over several results for which there are data."""
    return [*_bandwidth(results), *_calls(results), *_training(results)]


def choose(records: Iterable[Record]) -> dict[tuple[Hashable, ...], Curves]:
    """The curves of each plot that has two points or more; of equal records the last one counts."""
    lines: dict[tuple[Hashable, ...], list[Record]] = defaultdict(list)
    for record in records:
        lines[record.line].append(record)
    chosen = {}
    for line, found in lines.items():
        places: dict[int, set[Hashable]] = defaultdict(set)
        for record in found:
            places[record.size].add(record.at)
        size = max(places, key=lambda size: (len(places[size]), size))
        newest = {(r.method, r.at): r for r in found if r.size == size}
        if len(places[size]) < 2:
            continue
        curves = Curves(size, {}, defaultdict(dict))
        for record in sorted(newest.values(), key=lambda record: record.x):
            curves.labels[record.method] = record.label
            curves.points[record.method][record.x] = record.y
        chosen[line] = curves
    return chosen


def _bandwidth(results: Sequence[Result]) -> Iterator[Plot]:
    records = []
    for result in by_age(_of(results, "allreduce")):
        if not result["network"]["measured"]:
            continue
        rate, workers = min(result["network"]["measured"]), result["network"]["workers"]
        for raw, row in zip(result["measured"], allreduce_table.summarise(result), strict=True):
            if row.speedup is not None:
                line = framework_text(result), workers
                names = raw["method"], row.method
                records.append(Record(line, row.size, place(result), rate, row.speedup, *names))
    for (framework, workers), curves in choose(records).items():
        figure, axes = canvas(height=3.1)
        axes.axhline(1, color=FAINT, linewidth=0.8)
        axes.set_xscale("log")
        _draw(axes, curves)
        _log_y(axes, curves)
        rates = sorted({x for points in curves.points.values() for x in points})
        axes.set_xticks(rates, [rate_text(rate) for rate in rates])
        axes.set_xlabel("measured bandwidth of a host")
        axes.set_ylabel("times as fast as Horovod fp32")
        legend(figure, axes)
        yield Plot(
            f"bandwidth-{workers}-{framework}".lower(),
            "Speed-up against bandwidth",
            f"{tensor_text(curves.size)} of fp32, {workers} workers, {framework}",
            BANDWIDTH_CAPTION,
            figure,
        )


def _calls(results: Sequence[Result]) -> Iterator[Plot]:
    records, networks = [], {}
    for result in by_age(_of(results, "allreduce")):
        workers = result["network"]["workers"]
        line = framework_text(result), *place(result)
        networks[line] = network_text(result)
        for raw, row in zip(result["measured"], allreduce_table.summarise(result), strict=True):
            names = raw["method"], row.method
            records.append(Record(line, row.size, workers, workers, 1e3 * row.median, *names))
    for number, (line, curves) in enumerate(choose(records).items()):
        figure, axes = canvas(height=2.9)
        _workers(axes, curves)
        _log_y(axes, curves)
        axes.set_ylabel("ms")
        legend(figure, axes)
        yield Plot(
            f"scaling-allreduce-{number + 1}",
            "Time of a call over workers",
            f"{tensor_text(curves.size)} of fp32, {networks[line]}, {line[0]}",
            CALLS_CAPTION,
            figure,
        )


def _training(results: Sequence[Result]) -> Iterator[Plot]:
    records, words = [], {}
    for result in by_age(_of(results, "training")):
        workers = result["network"]["workers"]
        setup = result["setup"]
        alike = setup["model_text"], setup["data_text"], setup["batch"]
        line = framework_text(result), *place(result), *alike
        words[line] = f"{setup['model_text']}, {network_text(result)}"
        for raw, row in zip(result["methods"], training_table.summarise(result), strict=True):
            names = raw["name"], row.label
            records.append(Record(line, 0, workers, workers, row.samples_per_second, *names))
    for number, (line, curves) in enumerate(choose(records).items()):
        figure, axes = canvas(height=2.9)
        _workers(axes, curves)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("samples/s")
        legend(figure, axes)
        yield Plot(
            f"scaling-training-{number + 1}",
            "Throughput over workers",
            f"{words[line]}, {line[0]}",
            TRAINING_CAPTION,
            figure,
        )


def _of(results: Sequence[Result], kind: str) -> list[Result]:
    return [result for result in results if result["kind"] == kind]


def _workers(axes: Axes, curves: Curves) -> None:
    _draw(axes, curves)
    axes.set_xticks(sorted({x for points in curves.points.values() for x in points}))
    axes.set_xlabel("workers")


def _log_y(axes: Axes, curves: Curves) -> None:
    axes.set_yscale("log")
    log_ticks(axes.yaxis, [y for points in curves.points.values() for y in points.values()])


def _draw(axes: Axes, curves: Curves) -> None:
    for method, points in curves.points.items():
        colour, line, marker = look(method)
        axes.plot(
            [*points],
            [*points.values()],
            color=colour,
            linestyle=line,
            marker=marker,
            label=curves.labels[method],
        )
    axes.xaxis.set_minor_locator(NullLocator())
