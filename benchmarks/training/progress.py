"""Shows a training as its ranks tell of it, and gathers its raw figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmarks.methods.catalogue import Method


def collect(
    events: Iterable[dict[str, Any]],
    methods: Sequence[Method],
    setup: dict[str, Any],
    console: Console,
) -> list[dict[str, Any]]:
    """Draws progress from the ranks' events and returns each method's raw figures.

    Completes `setup` with what only the ranks know.
    """
    rows = {
        method.name: {
            "name": method.name,
            "label": method.label,
            "votes": method.votes,
            "optimizer": setup["optimizer_texts"][method.name],
            "payload_source": method.payload_source,
            "replicas_equal": None,
            "epochs": [],
        }
        for method in methods
    }
    total = setup["epochs"] * setup["steps"]
    with _progress(console) as progress:
        bars = {n: progress.add_task(r["label"], total=total, said="") for n, r in rows.items()}
        for event in events:
            kind, name = event.pop("event"), event.pop("method", None)
            if kind == "ready":
                setup["kernels"] = event["kernels"]
            elif kind == "progress":
                progress.update(bars[name], completed=event["done"])
            elif kind == "epoch":
                rows[name]["epochs"].append(event)
                done = len(rows[name]["epochs"])
                said = _said(event)
                progress.update(bars[name], completed=setup["steps"] * done, said=said)
                if not console.is_terminal:
                    console.print(f"{rows[name]['label']}, epoch {done}: {said}")
            elif kind == "replicas":
                rows[name]["replicas_equal"] = event["equal"]
    return list(rows.values())


def _said(epoch: dict[str, Any]) -> str:
    accuracy = epoch["accuracy"]
    judged = f"loss {epoch['loss']:.3f}" if accuracy is None else f"{accuracy:.1%} right"
    return f"{judged}, {epoch['seconds']:.1f} s an epoch"


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:19}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TextColumn("{task.fields[said]}"),
    )
    return Progress(*columns, console=console, refresh_per_second=4)
