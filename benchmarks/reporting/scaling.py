"""How training scales over the nodes of a cluster, from results of several numbers of workers.

Weak scaling: the batch of each worker stays, so that a step is of more samples. Strong scaling: the
samples of a step stay, so that each worker has fewer of them. The efficiency of W workers is their
samples a second over W times those of one worker, where "one worker" is a worker's share in the
smallest run of the same method; 1 is ideal. Emulated workers share one machine's cores, which would
be measured instead, so that their results are left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.emulation.allocation import MODE
from benchmarks.reporting import training_table
from benchmarks.reporting.experiments import by_age, place
from benchmarks.reporting.results import Result
from benchmarks.reporting.words import framework_text

WEAK, STRONG = "weak", "strong"


@dataclass(frozen=True)
class Point:
    """One method on one number of workers.

    Attributes:
        method, label: whose it is.
        nodes, workers: how many.
        samples_per_second: of all workers together.
        seconds: mean time of an epoch.
        efficiency: 1 for the smallest run.
        speedup: over the baseline of the same run; None without one.
    """

    method: str
    label: str
    nodes: int
    workers: int
    samples_per_second: float
    seconds: float
    efficiency: float
    speedup: float | None


@dataclass(frozen=True)
class Scaling:
    """Runs that differ in nothing but their number of workers.

    Attributes:
        kind: WEAK or STRONG.
        title: what was trained, and what stays the same.
        points: by method, from the fewest to the most workers.
    """

    kind: str
    title: str
    points: dict[str, list[Point]]


def scalings(results: Sequence[Result]) -> list[Scaling]:
    """Every group of training results of two numbers of workers or more, weak scaling first.

    Of equal runs the newest counts.
    """
    groups: dict[tuple[Hashable, ...], dict[int, Result]] = {}
    for result in by_age(results):
        if result["kind"] != "training" or result["network"]["mode"] != MODE:
            continue
        setup = result["setup"]
        task = framework_text(result), place(result), setup["model_text"], setup["data_text"]
        for kind, stays in ((WEAK, setup["batch"]), (STRONG, setup["samples_per_step"])):
            groups.setdefault((kind, *task, stays), {})[result["network"]["workers"]] = result
    found = [_scaling(str(key[0]), runs) for key, runs in groups.items() if len(runs) > 1]
    return sorted(found, key=lambda one: one.kind != WEAK)


def _scaling(kind: str, runs: dict[int, Result]) -> Scaling:
    points: dict[str, list[Point]] = {}
    for workers, result in sorted(runs.items()):
        for raw, row in zip(result["methods"], training_table.summarise(result), strict=True):
            before = points.setdefault(raw["name"], [])
            share = row.samples_per_second / workers
            first = before[0].samples_per_second / before[0].workers if before else share
            before.append(
                Point(
                    method=raw["name"],
                    label=row.label,
                    nodes=result["network"]["nodes"],
                    workers=workers,
                    samples_per_second=row.samples_per_second,
                    seconds=row.seconds,
                    efficiency=share / first,
                    speedup=row.speedup,
                )
            )
    result = next(iter(runs.values()))
    setup = result["setup"]
    stays = f"{setup['batch']} samples a worker"
    if kind == STRONG:
        stays = f"{setup['samples_per_step']} samples of all workers"
    title = (
        f"{kind.capitalize()} scaling: {setup['model_text']} on {setup['data_text']}, {stays} and "
        f"step, {framework_text(result)}"
    )
    return Scaling(kind, title, {name: found for name, found in points.items() if found[1:]})


def table(shown: Scaling) -> Table:
    """The efficiency of each method, size by size."""
    made = Table(header_style="bold", title_justify="left", title=shown.title)
    made.add_column("method")
    for name in ("nodes", "workers", "samples/s", "s/epoch", "efficiency", "speed-up"):
        made.add_column(name, justify="right", no_wrap=True)
    for points in shown.points.values():
        for point in points:
            made.add_row(
                point.label,
                str(point.nodes),
                str(point.workers),
                f"{point.samples_per_second:,.4g}",
                f"{point.seconds:.2f}",
                f"{point.efficiency:.0%}",
                "-" if point.speedup is None else f"{point.speedup:.2f} x",
            )
    return made
