"""The table of the allreduce benchmark, from its result file alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.table import Table

from benchmarks import methods, results
from benchmarks.words import network_text, size_text

COLUMNS = (
    *("size", "method", "median ms", "min", "max", "algbw", "busbw", "payload", "wire"),
    *("limit ms", "wrong", "speed-up", "over best"),
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        size: bytes of fp32.
        method: its label.
        median: seconds of the slowest rank; so are least and most.
        algbw: size / median, bytes/s.
        busbw: algbw x 2 (M-1)/M, bytes/s.
        payload: bytes a worker sends in a call.
        wire: bytes that left its interface; None where that was not measured.
        limit: payload / rate in seconds; None without a rate.
        wrong: coordinates of a sample that were wrong.
        speedup: the baseline's median over this one's; None without a baseline.
        over_best: of a vote: the median of the fastest other method over this one's.
    """

    size: int
    method: str
    median: float
    least: float
    most: float
    algbw: float
    busbw: float
    payload: float
    wire: float | None
    limit: float | None
    wrong: int
    speedup: float | None
    over_best: float | None


def summarise(result: results.Result) -> list[Row]:
    """The table's lines from the raw figures, in their order."""
    network = result["network"]
    workers, rate = network["workers"], network["bits_per_second"]
    bases: dict[int, float] = {}
    best: dict[int, float] = {}
    for raw in result["measured"]:
        median, size = float(np.median(raw["seconds"])), raw["size"]
        if raw["method"] == methods.BASELINE:
            bases[size] = median
        if not methods.METHODS[raw["method"]].votes:
            best[size] = min(median, best.get(size, median))
    rows = []
    for raw in result["measured"]:
        median = float(np.median(raw["seconds"]))
        base = bases.get(raw["size"])
        votes = methods.METHODS[raw["method"]].votes
        rows.append(
            Row(
                size=raw["size"],
                method=raw["label"],
                median=median,
                least=min(raw["seconds"]),
                most=max(raw["seconds"]),
                algbw=raw["size"] / median,
                busbw=raw["size"] / median * 2 * (workers - 1) / workers,
                payload=raw["payload_bytes"],
                wire=raw["wire_bytes"] if network["interface"] else None,
                limit=8 * raw["payload_bytes"] / rate if rate else None,
                wrong=raw["wrong"],
                speedup=None if base is None else base / median,
                over_best=best[raw["size"]] / median if votes and raw["size"] in best else None,
            )
        )
    return rows


def table(result: results.Result) -> Table:
    """The table that the benchmark ends with."""
    title = (
        f"{result['network']['workers']} workers, {network_text(result)}; "
        f"HOROVOD_CYCLE_TIME {result['setup']['cycle_time']:g} ms"
    )
    shown = Table(header_style="bold", title_justify="left", title=title)
    for name in COLUMNS:
        shown.add_column(name, no_wrap=True, justify="left" if name == "method" else "right")
    for row in summarise(result):
        shown.add_row(
            size_text(row.size),
            row.method,
            f"{1e3 * row.median:.4g}",
            f"{1e3 * row.least:.4g}",
            f"{1e3 * row.most:.4g}",
            size_text(row.algbw) + "/s",
            size_text(row.busbw) + "/s",
            size_text(row.payload),
            "-" if row.wire is None else size_text(row.wire),
            "-" if row.limit is None else f"{1e3 * row.limit:.4g}",
            str(row.wrong),
            "-" if row.speedup is None else f"{row.speedup:.2f} x",
            "-" if row.over_best is None else f"{row.over_best:.2f} x",
        )
    return shown
