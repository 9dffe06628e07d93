"""What tables, pictures and pages say alike: sizes, rates and networks in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.emulation.allocation import MODE
from benchmarks.methods.catalogue import METHODS
from benchmarks.reporting.results import Result
from benchmarks.training.frameworks import FRAMEWORKS, MPI

WIDTH = 150
# Versions that decide what a result of a framework is made with.
TELLING = {"tensorflow": ("tensorflow", "keras"), "torch": ("torch",)}


def network_text(result: Result) -> str:
    """The network in words, with what was measured of it."""
    network = result["network"]
    if network["mode"] == "loopback":
        return "loopback: no network was emulated"
    if network["mode"] == MODE:
        return (
            f"{nodes_text(network['nodes'])} of a cluster, ranks started by {network['launcher']}"
        )
    measured = rate_text(min(network["measured"]))
    limit = network["bits_per_second"]
    rate = "no limit" if limit is None else f"{rate_text(limit)} emulated"
    return f"{rate} between network namespaces (measured {measured})"


def place_text(result: Result) -> str:
    """Network and workers in a few words: '1 Gbit/s, 4 workers'."""
    network = result["network"]
    limit = network["bits_per_second"]
    where = "loopback" if network["mode"] == "loopback" else "no limit"
    if network["mode"] == MODE:
        where = nodes_text(network["nodes"])
    return f"{rate_text(limit) if limit else where}, {network['workers']} workers"


def nodes_text(nodes: int) -> str:
    """1 -> '1 node'."""
    return "1 node" if nodes == 1 else f"{nodes} nodes"


def rate_text(rate: float) -> str:
    """Bits per second in words: 1e9 -> '1 Gbit/s'."""
    unit, scale = ("Gbit/s", 1e9) if rate >= 0.5e9 else ("Mbit/s", 1e6)
    return f"{rate / scale:.3g} {unit}"


def size_text(size: float) -> str:
    """Bytes in decimal units: 9730236 -> '9.73 MB'."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def tensor_text(size: int) -> str:
    """Bytes of a tensor; whole KiB and MiB so, as they were asked for: 1024 -> '1 KiB'."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size % scale == 0 and size < 1024 * scale:
            return f"{size // scale} {unit}"
    return size_text(size)


def framework_text(result: Result) -> str:
    """The framework in words, PyTorch where the result does not tell.

    TensorFlow is told by its version, on which it depends whether Keras is 2 or 3 and whether
    Horovod can serve it.
    """
    name = result.get("framework", "torch")
    text = FRAMEWORKS[name].text if name in FRAMEWORKS else name
    found = re.match(r"\d+\.\d+", result["versions"].get(name, ""))
    return f"{text} {found[0]}" if name == "tensorflow" and found else text


def framework_suffix(result: Result, results: Sequence[Result]) -> str:
    """', PyTorch' behind a label, where the results are of several frameworks; else nothing."""
    several = len({framework_text(one) for one in results}) > 1
    return f", {framework_text(result)}" if several else ""


def runtime_text(result: Result) -> str:
    """Frameworks' versions, and whose ranks and plain allreduce they were: one sentence."""
    versions = result["versions"]
    name = result.get("framework", "torch")
    told = [f"{one} {versions[one]}" for one in TELLING.get(name, ()) if one in versions]
    horovod = f"Horovod {versions.get('horovod', '')}".strip()
    own = "hvd_sign's own runtime on MPI, without Horovod"
    return ", ".join([*told, f"ranks of {own if result.get('runtime') == MPI else horovod}"])


def is_ours(method: str) -> bool:
    """Whether the method of this name, one of another version too, is a vote of hvd_sign's."""
    if method in METHODS:
        return METHODS[method].group == "ours"
    return method.startswith("vote-")


def show_table(shown: Table, folder: Path, console: Console) -> None:
    """Prints a table, and writes it to the result directory."""
    with (folder / "report.txt").open("w") as file:
        Console(file=file, width=2 * WIDTH).print(shown)
    console.print(shown)
    console.print(f"raw figures and logs: {folder}")
