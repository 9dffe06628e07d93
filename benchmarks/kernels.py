"""Throughput of the kernels on one core, beside this machine's memory and numpy.

Everything is measured in turns, round after round, in one process, so that a busy neighbour slows
all rows and not one, and in the thread's own time, without that for which others had its core; a
row's figure is its fastest round. The yardsticks:

- read: one pass over the array that does the least with it: the fastest of our xor of all words
  and numpy's max, or and dot (single-threaded), for none of them is the fastest everywhere;
- copy: numpy.copyto of the array, read and written bytes together;
- copy + read: both, one after the other: the traffic of a momentum, which reads a gradient and
  reads and writes a state;
- packbits: numpy.packbits(x < 0), which does what pack does, without zeros, activity and NaN.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.reporting.results import new_result
from hvd_sign.core import kernels

Array = npt.NDArray[Any]
COIN, ZERO = 0, 1
BALLOT_BYTES = 3_200_000
VOTERS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255)
TALLY_SECONDS = 1e-3
AWAKE, ASLEEP, TIES_ZERO = "all active", "an eighth asleep", "ties zero"
WEIGHTED, COUNTED = "weighted", "and counted"
TALLIES = (AWAKE, ASLEEP, TIES_ZERO, WEIGHTED, COUNTED)
READ, COPY, PACKBITS = "read", "numpy.copyto", "numpy.packbits(x < 0)"
LIMIT = "copy + read"
GRADIENT, MOMENTUM, LION = (0.0, 1.0, 0.0, 0.0), (0.9, 0.1, 0.9, 0.1), (0.9, 0.1, 0.99, 0.01)


class Target(NamedTuple):
    """What a row must reach: `measure` of `of` (another row), or seconds at most."""

    measure: str  # "bandwidth", "speed" (coordinates per second) or "seconds"
    of: str
    value: float


@dataclass
class Row:
    """One thing to measure.

    Attributes:
        label: the row's name, and its key in the JSON file.
        call: does it once.
        bytes: read and written by one call.
        coordinates: handled by one call.
        targets: what it must reach.
        seconds: of each round.
    """

    label: str
    call: Callable[[], Any]
    bytes: int
    coordinates: int = 0
    targets: Sequence[Target] = ()
    seconds: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def bandwidth(self) -> float:
        """Bytes per second of the fastest round."""
        return self.bytes / self.best


def yardsticks(x: Array) -> list[Row]:
    """This machine's memory, and numpy's way to pack signs."""
    words, y = x.view(np.uint64), np.empty_like(x)
    readers: dict[str, Callable[[], Any]] = {
        "xor": lambda: kernels.xor_words(words),
        "max": lambda: x.view(np.uint32).max(),
        "or": lambda: np.bitwise_or.reduce(words),
        "dot": lambda: np.dot(x, x),
    }
    rows = [Row(f"{READ} ({name})", call, x.nbytes) for name, call in readers.items()]
    rows.append(Row(COPY, lambda: np.copyto(y, x), 2 * x.nbytes))
    rows.append(Row(PACKBITS, lambda: np.packbits(x < 0), x.nbytes, x.size))
    return rows


def tensor_rows(x: Array) -> list[Row]:
    """pack, write_verdict, apply_verdict and seal, each type in turn."""
    geometry = kernels.Geometry(-(-x.size // kernels.BLOCK), 4)
    messages = np.zeros(geometry.total_bytes, np.uint8)
    planes = messages.nbytes
    wide: dict[str, Array] = {
        "float32": x,
        "float16": x.astype(np.float16),
        "float64": x.astype(np.float64),
    }
    wide["bfloat16"] = (x.view(np.uint32) >> 16).astype(np.uint16)
    rows: list[Row] = []
    for name, signal in wide.items():
        first = name == "float32"
        options = {"bfloat16": name == "bfloat16"}
        cast: dict[str, Any] = {"ties": COIN, "key": 1, "parity": 0, "ordinal": 0, **options}
        out, p = signal.copy(), signal.copy()  # their own, for they become votes
        pack = partial(kernels.pack, signal, messages, geometry, 0, **cast)
        write = partial(kernels.write_verdict, out, messages, geometry, 0, **options)
        apply = partial(kernels.apply_verdict, p, messages, geometry, 0, lr=1e-4, **options)
        size = signal.nbytes
        read = (Target("bandwidth", READ, 0.75), Target("speed", PACKBITS, 3.0)) if first else ()
        copy = (Target("bandwidth", COPY, 0.85),) if first else ()
        rows += [
            Row(f"pack {name}", pack, size, x.size, read),
            Row(f"pack {name} and sum |x|", partial(pack, want_abs=True), size, x.size),
            *linear_rows(name, signal, messages, geometry, cast),
            Row(f"write_verdict {name}", write, size + planes, x.size, copy),
            Row(f"apply_verdict {name}", apply, 2 * size + planes, x.size, copy),
        ]
    labels = {"kind": kernels.BALLOT, "flags": 0, "ties": COIN, "stream": 0, "bucket": 0}
    labels |= {"segment": 0, "counter": 0, "step": 0, "sender": 0}
    rows.append(Row("seal", lambda: kernels.seal(messages, geometry, **labels), planes))
    return rows


def linear_rows(
    name: str,
    signal: Array,
    messages: Array,
    geometry: kernels.Geometry,
    cast: dict[str, Any],
) -> list[Row]:
    """A momentum in the same pass as pack; beside it, for float32, what it is to be judged by."""
    state = np.zeros(signal.size, np.float64 if name == "float64" else np.float32)
    size = signal.nbytes + 2 * state.nbytes

    def row(label: str, target: Array, linear: Any, targets: Sequence[Target] = ()) -> Row:
        arrays = signal, state, target, messages
        call = partial(kernels.pack_linear, *arrays, geometry, 0, linear=linear, **cast)
        return Row(f"{label} {name}", call, size, signal.size, targets)

    kept, sent = np.zeros_like(state), np.zeros(-(-signal.size // 4096), np.float32)
    feedback = kept, kept, sent, np.zeros_like(sent)  # of a scale that stays 0
    arrays = signal, None, None, messages
    call = partial(kernels.pack_linear, *arrays, geometry, 0, linear=GRADIENT, feedback=feedback)
    fed_back = Row(
        f"ef_sign + pack {name}", partial(call, want_abs=True, **cast), size, signal.size
    )
    if name != "float32":
        return [row("momentum + pack", state, MOMENTUM), fed_back]
    rows = [
        fed_back,
        row("momentum + pack", state, MOMENTUM, (Target("bandwidth", LIMIT, 0.8),)),
        row("lion + pack", state, LION, (Target("bandwidth", LIMIT, 0.8),)),
        row("momentum + pack, two states,", state.copy(), MOMENTUM),
    ]
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)  # as all others
        v, g = torch.zeros(signal.size), torch.from_numpy(signal)

        def update() -> None:
            v.mul_(0.9).add_(g, alpha=0.1)
            kernels.pack(v, messages, geometry, 0, **cast)

        rows.append(Row(f"mul_, add_, then pack {name}", update, size, signal.size))
    return rows


def tally_row(count: int, kind: str) -> Row:
    """A tally of 3.2 MB of planes of `count` ballots."""
    ties = ZERO if kind == TIES_ZERO else COIN
    blocks = BALLOT_BYTES // (16 if ties == ZERO else 8) // count
    geometry = kernels.Geometry(blocks, 1, ties == ZERO)
    shape = count, geometry.message_bytes
    ballots = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    bitmaps = ballots[:, geometry.active_offset :][:, : -(-blocks // 8)]
    bitmaps[:] = 0b11111110 if kind == ASLEEP else 0b11111111
    verdict = np.zeros(geometry.message_bytes, np.uint8)
    weighing: dict[str, Array] = {}
    if kind in (WEIGHTED, COUNTED):
        weighing["weights"] = np.random.default_rng(2).integers(-15, 16, count, np.int8)
        weighing["lengths"] = np.full(1, blocks * kernels.BLOCK, np.uint64)
    if kind == COUNTED:
        weighing |= {name: np.zeros(count, np.uint64) for name in ("agreed", "judged")}

    def tally() -> None:
        kernels.tally(
            ballots.reshape(-1),
            geometry,
            verdict,
            shard=0,
            ties=ties,
            key=1,
            first_blocks=np.zeros(1, np.int64),
            ordinals=np.zeros(1, np.uint64),
            **weighing,
        )

    targets: Sequence[Target] = ()
    if not weighing and 3 <= count <= 255:
        targets = (Target("seconds", "", TALLY_SECONDS),)
    elif kind == WEIGHTED and count == 16:
        targets = (Target("bandwidth", f"tally M = {count}, {AWAKE}", 1 / 3),)
    return Row(f"tally M = {count}, {kind}", tally, ballots.nbytes, 0, targets)


def measure(rows: Sequence[Row], rounds: int, console: Console) -> None:
    """Runs all rows in turns, the first round not counted."""
    for turn in track(range(rounds + 1), "rounds", console=console, transient=True):
        for row in rows:
            start = time.thread_time()
            row.call()
            if turn:
                row.seconds.append(time.thread_time() - start)


def ratio(row: Row, target: Target, rows: dict[str, Row]) -> float:
    """The row's measure, in units of the target's row."""
    if target.measure == "seconds":
        return row.best
    other = rows[target.of]
    if target.measure == "speed":
        return (row.coordinates / row.best) / (other.coordinates / other.best)
    return row.bandwidth / other.bandwidth


def verdict(row: Row, rows: dict[str, Row]) -> list[dict[str, Any]]:
    """Each of the row's targets, what it reached, and whether that is enough."""
    judged = []
    for target in row.targets:
        got = ratio(row, target, rows)
        met = got <= target.value if target.measure == "seconds" else got >= target.value
        judged.append({**target._asdict(), "got": got, "met": met})
    return judged


def tensor_table(rows: Sequence[Row], named: dict[str, Row]) -> Table:
    """Yardsticks, and all that walks through a tensor."""
    found = _table("", "best ms", "median ms", "GB/s", "of read", "of copy", "x packbits", "target")
    for row in rows:
        tensor = row.coordinates > 0
        speed = ratio(row, Target("speed", PACKBITS, 0), named) if tensor else 0.0
        of = [row.bandwidth / named[name].bandwidth if tensor else 0.0 for name in (READ, COPY)]
        found.add_row(
            row.label,
            f"{row.best * 1e3:.3f}",
            f"{statistics.median(row.seconds) * 1e3:.3f}",
            f"{row.bandwidth / 1e9:.1f}",
            *(f"{part:.2f}" if part else "" for part in (*of, speed)),
            ", ".join(_sentence(one) for one in verdict(row, named)),
        )
    return found


def tally_table(rows: Sequence[Row], named: dict[str, Row]) -> Table:
    """One line for each number of voters, best milliseconds in each case."""
    found = _table(f"{BALLOT_BYTES / 1e6:g} MB of ballots, best ms", *TALLIES, "target", "of plain")
    for start in range(0, len(rows), len(TALLIES)):
        here = rows[start : start + len(TALLIES)]
        plain = [one for row in here[:3] for one in verdict(row, named)]
        worst = max(plain, key=lambda one: one["got"], default=None)
        slower = here[3].best / here[0].best
        weighted = [_met(one) for one in verdict(here[3], named)]
        found.add_row(
            here[0].label.split(",")[0],
            *(f"{row.best * 1e3:.3f}" for row in here),
            _sentence(worst) if worst else "",
            " ".join([f"{slower:.1f} x", *weighted]),
        )
    return found


def _table(*columns: str) -> Table:
    found = Table(*columns)
    for column in found.columns[1:]:
        column.justify = "right"
    return found


def _met(judged: dict[str, Any]) -> str:
    return "met" if judged["met"] else "[bold]missed[/bold]"


def _sentence(judged: dict[str, Any]) -> str:
    met = _met(judged)
    if judged["measure"] == "seconds":
        return f"{judged['value'] * 1e3:g} ms {met}"
    return f"{judged['value']:g} x {judged['of'].split('(')[0]} {met}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--coordinates", type=int, default=25_600_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--voters", type=int, nargs="+", default=VOTERS, metavar="M")
    parser.add_argument("--implementation", choices=kernels.implementations())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    options = parser.parse_args(arguments)
    if min(options.coordinates, options.rounds, *options.voters) < 1:
        parser.error("--coordinates, --rounds and --voters: expected numbers from 1 on")
    if options.implementation:
        kernels.set_implementation(options.implementation)

    console = Console(width=None if sys.stdout.isatty() else 118)
    size = -(-options.coordinates // 2) * 2  # whole words of 8 bytes
    x = np.random.default_rng(0).standard_normal(size, np.float32)
    tensors = [*yardsticks(x), *tensor_rows(x)]
    tallies = [tally_row(count, kind) for count in options.voters for kind in TALLIES]
    rows = tensors + tallies
    measure(rows, options.rounds, console)
    named = {row.label: row for row in rows}
    named[READ] = min((row for row in rows if row.label.startswith(READ)), key=lambda row: row.best)
    copy, read = named[COPY], named[READ]
    limit = Row(LIMIT, print, copy.bytes + read.bytes, seconds=[copy.best + read.best])
    named[LIMIT] = limit
    tensors.insert(tensors.index(copy) + 1, limit)

    result = new_result("kernels")
    machine = result["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, load {os.getloadavg()[0]:.1f}; "
        f"{kernels.implementation()}; {size:,} coordinates"
    )
    console.print(tensor_table(tensors, named))
    console.print(tally_table(tallies, named))
    packbits = named[PACKBITS]
    if 3 * packbits.bandwidth > read.bandwidth:
        console.print(
            f"3 x packbits would be {3 * packbits.bandwidth / 1e9:.1f} GB/s, more than the "
            f"{read.bandwidth / 1e9:.1f} GB/s at which this machine reads."
        )
    if options.json:
        result |= {"implementation": kernels.implementation(), "coordinates": size}
        result["rows"] = {
            row.label: {
                "seconds": row.seconds,
                "bytes": row.bytes,
                "coordinates": row.coordinates,
                "targets": verdict(row, named),
            }
            for row in rows
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
