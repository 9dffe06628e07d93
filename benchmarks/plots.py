"""The pictures of a training benchmark, from its result file alone."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from benchmarks.results import Result
from benchmarks.training_table import summarise
from benchmarks.words import network_text

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#777777", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00")
INK, FAINT = "#222222", "#6b6b6b"
STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": "#bbbbbb",
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}
RESOLUTION = 160


def save(result: Result, folder: Path) -> list[Path]:
    """Draws accuracy.png and epoch-time.png into a folder and returns their paths."""
    with mpl.rc_context(STYLE):
        return [
            _save(_accuracy(result), folder / "accuracy.png"),
            _save(_epoch_time(result), folder / "epoch-time.png"),
        ]


def _accuracy(result: Result) -> Figure:
    figure, axes = _canvas(result, "Test accuracy against training time", height=4.4)
    for method, colour in zip(result["methods"], COLOURS, strict=False):
        times = list(accumulate(epoch["seconds"] for epoch in method["epochs"]))
        levels = [100 * epoch["accuracy"] for epoch in method["epochs"]]
        label = f"{method['label']}: {levels[-1]:.1f} %"
        axes.plot(times, levels, color=colour, marker="o", markersize=5, linewidth=2, label=label)
    axes.set_xlim(left=0)
    legend = axes.legend(loc="lower right", labelcolor="linecolor", framealpha=1, edgecolor="none")
    for text in legend.get_texts():
        text.set_fontweight("bold")
    axes.set_xlabel("seconds of training (evaluation not counted); one point an epoch")
    axes.set_ylabel("test accuracy, %")
    return figure


def _epoch_time(result: Result) -> Figure:
    rows = summarise(result)
    figure, axes = _canvas(result, "Time per epoch", height=1.9 + 0.62 * len(rows))
    for place, (row, method) in enumerate(zip(rows, result["methods"], strict=True)):
        colour = COLOURS[place % len(COLOURS)]
        waiting = row.seconds * row.wait_share
        busy = row.seconds - waiting
        axes.barh(place, busy, color=colour, height=0.62)
        axes.barh(place, waiting, left=busy, color=_pale(colour), height=0.62)
        each = [epoch["seconds"] for epoch in method["epochs"]]
        axes.plot(each, [place] * len(each), "|", color=INK, markersize=9, markeredgewidth=1)
        ratio = "" if row.speedup in (None, 1) else f"   {row.speedup:.2f} x"
        axes.annotate(
            f"{row.seconds:.1f} s{ratio}",
            (max(each), place),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds: full colour computing, pale waiting; ticks: single epochs")
    return figure


def _canvas(result: Result, title: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", pad=42)
    setup, network = result["setup"], result["network"]
    axes.annotate(
        f"{setup['model_text']} on {setup['data_text']}, {network['workers']} workers\n"
        f"{network_text(result)}",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 8),
        textcoords="offset points",
        color=FAINT,
        fontsize=9.5,
        va="bottom",
    )
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=RESOLUTION, bbox_inches="tight", pad_inches=0.2)
    return path


def _pale(colour: str) -> tuple[float, ...]:
    return tuple(0.35 * part + 0.65 for part in to_rgb(colour))
