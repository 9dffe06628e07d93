"""The plots of result files, from these files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting.plots import across, allreduce, scaling, training
from benchmarks.reporting.plots.style import PALETTE, Plot, save_png, styled, svg
from benchmarks.reporting.results import Result

__all__ = ["PALETTE", "plots_across", "plots_of", "save", "save_png", "svg"]
MAKERS = {"training": training.plots, "allreduce": allreduce.plots}


def plots_of(results: Sequence[Result]) -> list[Plot]:
    """The plots of results that differ in nothing but their framework; none of some kinds."""
    make = MAKERS.get(results[0]["kind"])
    with styled():
        return make(results) if make else []


def plots_across(results: Sequence[Result]) -> list[Plot]:
    """The plots for which results of several bandwidths or numbers of workers are needed."""
    with styled():
        return [*across.plots(results), *scaling.plots(results)]


def save(result: Result, folder: Path) -> list[Path]:
    """Draws the plots of one result into a folder, as PNG files, and returns their paths."""
    return [save_png(plot, folder / f"{plot.name}.png") for plot in plots_of([result])]
