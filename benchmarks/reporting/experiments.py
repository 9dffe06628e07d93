"""Which results belong together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from benchmarks.reporting.results import Result
from benchmarks.reporting.words import framework_text


def place(result: Result) -> tuple[Hashable, ...]:
    """The network that it was measured on, without the number of workers.

    On a cluster, where nodes may have several workers, with how many a node has.
    """
    network = result["network"]
    nodes = network.get("nodes")
    sharing = network["workers"] // nodes if nodes else None
    return network["mode"], network["bits_per_second"], sharing


def task(result: Result) -> tuple[Hashable, ...]:
    """What was measured, whatever the network, the number of workers and the framework."""
    setup: dict[str, Any] = result["setup"]
    names = {
        "training": ("model_text", "data_text", "batch", "epochs"),
        "overlap": ("coordinates", "layers", "cycle_time"),
        "allreduce": ("cycle_time",),
    }
    figures = [setup.get(name) for name in names[result["kind"]]]
    return (result["kind"], *figures, *setup.get("sizes", ()))


def by_age(results: Iterable[Result]) -> list[Result]:
    """The results in the order in which they were started."""
    return sorted(results, key=lambda result: str(result["started"]))


def grouped(results: Iterable[Result]) -> list[list[Result]]:
    """Results that differ in nothing but their framework, in one list each.

    One of the same framework that was measured again is a group of its own. Lists are in the order
    of their first result.
    """
    groups: list[list[Result]] = []
    for result in results:
        key = task(result), place(result), result["network"]["workers"]
        for group in groups:
            first = group[0]
            alike = key == (task(first), place(first), first["network"]["workers"])
            if alike and framework_text(result) not in map(framework_text, group):
                group.append(result)
                break
        else:
            groups.append([result])
    return groups
