"""How every plot looks, as a PNG file and as part of a page.

A method has the same colour, line and marker in every plot: the colour is its family's, the line
and the marker tell the family's members apart. Colours are Okabe and Ito's, told apart by
colour-blind readers too. In a page every colour is a CSS variable, so that a plot follows the
reader's light or dark mode.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from benchmarks.reporting.words import is_ours

# CSS variable: the colour in a light page and in a PNG file, the colour in a dark page.
PALETTE = {
    "ink": ("#1d2129", "#e8eaee"),
    "faint": ("#5d6470", "#a2a9b5"),
    "grid": ("#e6e8ec", "#2c313a"),
    "edge": ("#b9bec7", "#4b525e"),
    "vote": ("#0072b2", "#4fb0ee"),
    "votes": ("#56b4e9", "#9ad3f7"),
    "fp32": ("#707782", "#9aa1ad"),
    "horovod": ("#e69f00", "#efb02e"),
    "distributed": ("#8c6d31", "#c2a066"),
    "ddp": ("#009e73", "#2fc79b"),
    "powersgd": ("#d55e00", "#f08336"),
    "baselines": ("#cc79a7", "#df9cc0"),
    "local": ("#9aa0aa", "#757c88"),
}
FAMILIES = {
    "vote": ("signum", "vote", "lion", "ef_sign", "onebit"),
    "fp32": ("fp32",),
    "horovod": ("fp16", "adasum"),
    "distributed": ("gloo", "nccl"),
    "ddp": ("ddp", "ddp-fp16", "ddp-bf16"),
    "powersgd": ("powersgd-1", "powersgd-2", "powersgd-4"),
    "baselines": ("qsgd", "topk", "sign-bytes", "onebit-average"),
    "local": ("local",),
}
LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v", "P", "X")
VOTES = (
    *("vote-allgather", "vote-hierarchical", "vote-zero", "vote-positive"),
    *("vote-horovod", "vote-mpi4py", "vote-tensorflow"),
)
WIDTH = 4.4  # inches: as wide as a phone shows them, at 72 units to the inch
RESOLUTION = 240
COLOURS = 64
SUBTITLE_WIDTH = 72  # characters
TWO_COLUMNS = 25  # characters of a label of which two fit beside each other
ROOM = 1.28  # of a bar, for the figure behind it
INK, FAINT, GRID, EDGE = (PALETTE[name][0] for name in ("ink", "faint", "grid", "edge"))
STYLE: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 9.4,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "legend.fontsize": 8.6,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "hvd_sign",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


class Look(NamedTuple):
    """Colour, line and marker of a method, in matplotlib's words."""

    colour: str
    line: str
    marker: str


@dataclass(frozen=True)
class Plot:
    """A finished plot.

    Attributes:
        name: of its file, without a suffix.
        title: what it shows.
        subtitle: of which measurement.
        caption: how to read it.
        figure: without title and subtitle.
    """

    name: str
    title: str
    subtitle: str
    caption: str
    figure: Figure


def look(name: str) -> Look:
    """The look of the method of this name, which a later version may not know any more."""
    family, place = "votes" if is_ours(name) else "baselines", 0
    if name in VOTES:
        place = VOTES.index(name)
    for known, members in FAMILIES.items():
        if name in members:
            family, place = known, members.index(name)
    return Look(PALETTE[family][0], LINES[place % len(LINES)], MARKERS[place % len(MARKERS)])


def canvas(height: float) -> tuple[Figure, Axes]:
    """An empty figure of WIDTH x height inches, and its axes; call it within `styled()`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def styled() -> Any:
    """A context manager in which matplotlib draws in this style."""
    return mpl.rc_context(STYLE)


def log_ticks(axis: Axis, values: Iterable[float]) -> None:
    """Labels a logarithmic axis with plain numbers, more of them where it spans little."""
    span = max(values) / min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 1000 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend(figure: Figure, axes: Axes) -> None:
    """Names the axes' labelled artists below them, and makes room for that."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= TWO_COLUMNS else 1
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * rows)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns)


def save_png(plot: Plot, path: Path) -> Path:
    """Writes the figure, with title and subtitle above it, and returns the path."""
    subtitle = textwrap.fill(plot.subtitle, SUBTITLE_WIDTH)
    title_height, inch = 0.16 + 0.14 * (subtitle.count("\n") + 1), 1 / plot.figure.get_figheight()
    with styled():
        # Above the figure's upper edge, where bbox_inches="tight" finds them.
        texts = (
            plot.figure.text(0.01, 1 + 0.08 * inch, subtitle, color=FAINT, fontsize=8),
            plot.figure.text(
                0.01, 1 + title_height * inch, plot.title, fontsize=11.5, fontweight="bold"
            ),
        )
        drawn = BytesIO()
        plot.figure.savefig(
            drawn, dpi=RESOLUTION, facecolor="white", bbox_inches="tight", pad_inches=0.15
        )
        for text in texts:
            text.remove()
    # A palette makes the file a quarter as large, and nobody sees it.
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    return path


def svg(plot: Plot, prefix: str) -> str:
    """The figure as an <svg> element whose colours are CSS variables.

    Args:
        plot: what is drawn.
        prefix: of all ids, so that no two in a page are equal.
    """
    drawn = StringIO()
    with styled():
        plot.figure.savefig(drawn, format="svg", metadata=_NO_METADATA)
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    for variable, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{variable})")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
