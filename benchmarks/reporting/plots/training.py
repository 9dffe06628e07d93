"""The plots of training results: accuracy against time, and what an epoch is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from benchmarks.reporting.plots.style import FAINT, INK, PALETTE, ROOM, Plot, canvas, legend, look
from benchmarks.reporting.results import Result
from benchmarks.reporting.training_table import headline
from benchmarks.reporting.words import framework_suffix

# What a vote's engine does, by the names in VoteStats, in the order in which it happens.
PHASES = {
    "pack_seconds": ("pack", PALETTE["horovod"][0]),
    "exchange_seconds": ("exchange", PALETTE["votes"][0]),
    "tally_seconds": ("tally", PALETTE["baselines"][0]),
    "apply_seconds": ("apply", PALETTE["ddp"][0]),
}
FILLS = ("full", "none", "left", "right")  # of markers, by framework
ACCURACY_CAPTION = (
    "Each point is an epoch; further left is sooner, higher is better. Time of evaluation is not "
    "counted. Dotted: the accuracy to which the time is told, if one was stated."
)
TIME_CAPTION = (
    "Wide bars: the mean time of an epoch as the training thread sees it, in full colour while it "
    "computes, pale while it waits for the exchange; ticks are single epochs. A method that does "
    "not tell its waiting is pale where it takes longer than computing without any exchange, and "
    "hatched where that was not measured."
)
PHASES_CAPTION = (
    " Narrow bars: what the threads of a vote's engine did in that time, beside backward: pack, "
    "exchange, tally, apply. They are sums over all buckets, and buckets that travel at the same "
    "time count each. What is longer than the wait above it was hidden."
)


class Share(NamedTuple):
    """What a method's epoch is made of, in seconds.

    `waiting` is None where it is not known; then `computing` is the whole epoch.
    """

    computing: float
    waiting: float | None
    phases: dict[str, float]


def plots(results: Sequence[Result]) -> list[Plot]:
    """The plots of one training, by one framework or by several."""
    drawn = [_accuracy(results), _epoch_time(results)]
    return [plot for plot in drawn if plot is not None]


def share(method: dict[str, Any], result: Result) -> Share:
    """What the method's mean epoch is made of: the figures of the second plot.

    Waiting is what the optimizer told; else the time beyond that of `local` in the same run.
    """
    seconds = _mean(method, "seconds")
    waiting = _mean(method, "wait_seconds")
    alone = [_mean(other, "seconds") for other in result["methods"] if other["name"] == "local"]
    if waiting is None and method["name"] == "local":
        waiting = 0.0
    elif waiting is None and alone:
        waiting = max(0.0, seconds - alone[0])
    stats = [epoch["stats"] for epoch in method["epochs"] if epoch.get("stats")]
    phases = {name: sum(one[name] for one in stats) / len(stats) for name in PHASES if stats}
    return Share(seconds - (waiting or 0.0), waiting, phases)


def _mean(method: dict[str, Any], name: str) -> Any:
    values = [epoch[name] for epoch in method["epochs"]]
    return None if None in values else sum(values) / len(values)


def _each(results: Sequence[Result]) -> Iterator[tuple[Result, dict[str, Any], str]]:
    """Every method of every result, and what it is called beside the others."""
    for result in results:
        for method in result["methods"]:
            yield result, method, method["label"] + framework_suffix(result, results)


def _accuracy(results: Sequence[Result]) -> Plot | None:
    """None where no accuracy was measured."""
    figure, axes = canvas(height=2.9)
    for result, method, label in _each(results):
        levels = [epoch["accuracy"] for epoch in method["epochs"]]
        if None in levels:
            continue
        times = list(accumulate(epoch["seconds"] for epoch in method["epochs"]))
        colour, line, marker = look(method["name"])
        axes.plot(
            times,
            [100 * level for level in levels],
            color=colour,
            linestyle=line,
            marker=marker,
            fillstyle=FILLS[results.index(result) % len(FILLS)],
            label=f"{label}: {100 * levels[-1]:.1f} %",
        )
    if not axes.lines:
        return None
    target = results[0]["setup"]["target_accuracy"]
    if target is not None:
        axes.axhline(100 * target, color=FAINT, linewidth=1, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("accuracy on data not trained on, %")
    legend(figure, axes)
    title = "Accuracy against training time"
    return Plot("accuracy", title, headline(results[0]), ACCURACY_CAPTION, figure)


def _epoch_time(results: Sequence[Result]) -> Plot:
    rows = list(_each(results))
    figure, axes = canvas(height=0.7 + 0.42 * len(rows))
    for place, (result, method, _) in enumerate(rows):
        _bar(axes, place, method, share(method, result))
    names = [label.replace(", ", ",\n") for _, _, label in rows]
    axes.set_yticks(range(len(rows)), names, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, ROOM * axes.dataLim.x1)
    axes.set_xlabel("seconds an epoch")
    if axes.get_legend_handles_labels()[1]:
        legend(figure, axes)
    told = any(share(method, result).phases for result, method, _ in rows)
    caption = TIME_CAPTION + (PHASES_CAPTION if told else "")
    return Plot("epoch-time", "Time of an epoch", headline(results[0]), caption, figure)


def _bar(axes: Axes, place: int, method: dict[str, Any], parts: Share) -> None:
    """One method: what its training thread sees, and below that what its engine did."""
    colour = look(method["name"]).colour
    high = -0.08 if parts.phases else 0.0
    hatch = "" if parts.waiting is not None else "////"
    full = {"color": colour} if not hatch else {"facecolor": "none", "edgecolor": colour}
    axes.barh(place + high, parts.computing, height=0.44, hatch=hatch, **full)
    axes.barh(
        place + high, parts.waiting or 0, left=parts.computing, height=0.44, color=colour, alpha=0.3
    )
    each = [epoch["seconds"] for epoch in method["epochs"]]
    axes.plot(each, [place + high] * len(each), "|", color=INK, markersize=6)
    start = 0.0
    named = axes.get_legend_handles_labels()[1]
    for name, seconds in parts.phases.items():
        label, colour = PHASES[name]
        axes.barh(
            place + 0.26,
            seconds,
            left=start,
            height=0.14,
            color=colour,
            label=None if label in named else label,
        )
        start += seconds
    axes.annotate(
        f"{sum(each) / len(each):.3g} s",
        (max(each), place + high),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontweight="bold",
    )
