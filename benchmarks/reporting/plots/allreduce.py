"""The plot of allreduce results: time against size, with the limits drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.reporting.allreduce_table import Row, summarise
from benchmarks.reporting.plots.style import FAINT, INK, ROOM, Plot, canvas, legend, log_ticks, look
from benchmarks.reporting.results import Result
from benchmarks.reporting.words import framework_suffix, network_text, tensor_text

LIMITED = ("fp32", "vote")  # whose limits are drawn
LIMITS = {
    "wire_limit": ("limit of the wire", (0, (6, 2))),
    "memory_limit": ("limit of memory", (0, (1, 1.5))),
}
CURVES_CAPTION = (
    "Median time of a call against the bytes of fp32 that it reduces, both on logarithmic scales; "
    "lower is better. The thin lines are limits of Horovod's fp32 (grey) and of the vote (blue): "
    "dashed, what their bytes take on the wire; dotted, what they take in memory. A curve that "
    "runs flat on the left is bound by latency, one that runs along its limit by bandwidth. Small "
    "sizes may lie below both: an emulated limit lets a burst pass, and caches are not memory."
)
SPEEDUP_CAPTION = (
    "How many times as fast as Horovod's fp32 of the same run; both scales are logarithmic. Where "
    "a curve crosses the line at 1 is the size from which on its method is faster."
)
BARS_CAPTION = (
    "Median time of a call, shorter is better; the fine line goes from the fastest call to the "
    "slowest. Ticks across a bar are its limits: long, what its bytes take on the wire; short, "
    "what they take in memory."
)


class Curve(NamedTuple):
    """One method's rows, by size."""

    name: str
    label: str
    rows: list[Row]


def curves(results: Sequence[Result]) -> list[Curve]:
    """The rows of every method of every result."""
    return [curve for result in results for curve in _curves(result, results)]


def _curves(result: Result, results: Sequence[Result]) -> Iterator[Curve]:
    rows: dict[str, list[Row]] = {}
    for raw, row in zip(result["measured"], summarise(result), strict=True):
        rows.setdefault(raw["method"], []).append(row)
    for name, found in rows.items():
        label = found[0].method + framework_suffix(result, results)
        yield Curve(name, label, sorted(found, key=lambda row: row.size))


def plots(results: Sequence[Result]) -> list[Plot]:
    """The plot of one measurement, by one framework or by several."""
    drawn = curves(results)
    sizes = sorted({row.size for curve in drawn for row in curve.rows})
    workers = results[0]["network"]["workers"]
    subtitle = f"{workers} workers, {network_text(results[0])}"
    if len(sizes) == 1:
        title = f"Time to exchange {tensor_text(sizes[0])} of fp32"
        return [Plot("allreduce", title, subtitle, BARS_CAPTION, _bars(drawn))]
    figure = _times(drawn, sizes)
    found = [Plot("allreduce", "Time against size", subtitle, CURVES_CAPTION, figure)]
    if all(row.speedup is not None for curve in drawn for row in curve.rows):
        title, figure = "Speed-up against size", _speedups(drawn, sizes)
        found.append(Plot("allreduce-speedup", title, subtitle, SPEEDUP_CAPTION, figure))
    return found


def _times(drawn: Sequence[Curve], sizes: Sequence[int]) -> Figure:
    figure, axes = canvas(height=3.4)
    for curve in drawn:
        _draw(axes, curve, [1e3 * row.median for row in curve.rows])
    for curve in drawn:
        if curve.name in LIMITED:
            _limits(axes, curve)
    medians = [1e3 * row.median for curve in drawn for row in curve.rows]
    _log_axes(axes, sizes, medians)
    axes.set_ylim(min(medians) / 3, 2 * max(medians))
    axes.set_ylabel("ms")
    legend(figure, axes)
    return figure


def _limits(axes: Axes, curve: Curve) -> None:
    for attribute, (label, dashes) in LIMITS.items():
        limits = [getattr(row, attribute) for row in curve.rows]
        if None not in limits:
            axes.plot(
                [row.size for row in curve.rows],
                [1e3 * limit for limit in limits],
                color=look(curve.name).colour,
                linestyle=dashes,
                linewidth=1,
                label=f"{label}, {curve.name}",
            )


def _speedups(drawn: Sequence[Curve], sizes: Sequence[int]) -> Figure:
    figure, axes = canvas(height=3.4)
    axes.axhline(1, color=FAINT, linewidth=0.8)
    speedups = [[row.speedup or 1.0 for row in curve.rows] for curve in drawn]
    for curve, values in zip(drawn, speedups, strict=True):
        _draw(axes, curve, values)
    _log_axes(axes, sizes, [value for values in speedups for value in values])
    axes.set_ylabel("times as fast as Horovod fp32")
    legend(figure, axes)
    return figure


def _draw(axes: Axes, curve: Curve, values: Sequence[float]) -> None:
    colour, line, marker = look(curve.name)
    axes.plot(
        [row.size for row in curve.rows],
        values,
        color=colour,
        linestyle=line,
        marker=marker,
        label=curve.label,
    )


def _log_axes(axes: Axes, sizes: Sequence[int], values: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    shown = sizes[:: -(-len(sizes) // 5)]
    axes.set_xticks(shown, [tensor_text(size) for size in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    log_ticks(axes.yaxis, values)
    axes.set_xlabel("bytes of fp32")


def _bars(drawn: Sequence[Curve]) -> Figure:
    figure, axes = canvas(height=0.6 + 0.3 * len(drawn))
    for place, curve in enumerate(drawn):
        (row,) = curve.rows
        _bar(axes, place, look(curve.name).colour, row)
    axes.set_yticks(range(len(drawn)), [curve.label for curve in drawn], color=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_xlim(0, ROOM * axes.dataLim.x1)
    axes.set_xlabel("ms")
    return figure


def _bar(axes: Axes, place: int, colour: str, row: Row) -> None:
    median, least, most = (1e3 * seconds for seconds in (row.median, row.least, row.most))
    axes.barh(place, median, height=0.62, color=colour)
    axes.plot([least, most], [place, place], color=INK, linewidth=0.8)
    for attribute, half in (("wire_limit", 0.4), ("memory_limit", 0.2)):
        limit = getattr(row, attribute)
        if limit is not None:
            axes.plot([1e3 * limit] * 2, [place - half, place + half], color=INK, linewidth=1.2)
    axes.annotate(
        f"{median:.3g} ms",
        (most, place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontweight="bold",
    )
