"""What every vote decides and sends, as digests.csv has it; compared, or written anew with --write.

Verdicts and payload are the same for all frameworks and runtimes, so that the table has one row for
an interface and its options, with two columns for each number of ranks. An optimizer of PyTorch's
sends more than a tape of TensorFlow's, for it votes on which parameters have gradients. The payload
is that of the native engine.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import launch

TABLE = Path(__file__).with_suffix(".csv")
OPTIONS = ("interface", "ties", "exchange", "scale", "nonfinite", "dtype")
RANKS = (1, 2, 3, 4)
DTYPES = ("float32", "float64", "float16", *(["bfloat16"] if launch.has("ml_dtypes") else []))

Votes = dict[tuple[str, ...], tuple[str, str]]
"""Digest of the verdicts and bytes of payload, by the options."""


def votes(framework: str, runtime: str, ranks: int, dtypes: tuple[str, ...], folder: Path) -> Votes:
    """What a launch finds."""
    script = launch.RANKS / "programs" / "vote_digests.py"
    file = folder / "votes.csv"
    command = [*launch.mpirun(ranks), sys.executable, str(script), framework, str(file), *dtypes]
    extra = {
        "HVD_SIGN_RUNTIME": runtime,
        "HVD_SIGN_LINK_FILE": str(folder / "none.json"),  # segments go by what was measured
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    outcome = launch.run(command, folder, limit=580, extra=extra)
    assert outcome.returncode == 0, outcome.report()
    with file.open(newline="") as lines:
        return {tuple(key): (verdicts, payload) for *key, verdicts, payload in csv.reader(lines)}


def read(ranks: int) -> Votes:
    """What the table says."""
    with TABLE.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {
        tuple(row[name] for name in OPTIONS): (row[f"verdicts {ranks}"], row[f"payload {ranks}"])
        for row in rows
    }


def write(tables: dict[int, Votes]) -> None:
    """Makes the table."""
    with TABLE.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        columns = [f"{what} {ranks}" for ranks in tables for what in ("verdicts", "payload")]
        out.writerow([*OPTIONS, *columns])
        for key in tables[RANKS[0]]:
            out.writerow([*key, *(cell for table in tables.values() for cell in table[key])])


def differences(found: Votes, wanted: Votes) -> list[str]:
    """A line for each row that is not as wanted."""
    lines = []
    for key, got in found.items():
        want = wanted.get(key, ("nothing", "0"))
        for what, one, other in zip(("verdicts", "payload"), got, want, strict=True):
            if one != other:
                lines.append(f"{' '.join(key)}: expected {what} {other}, got {one}")
    return lines


def main() -> int:
    """All frameworks and runtimes that there are, on all numbers of ranks."""
    runs = [("numpy", "mpi")]
    for framework in filter(launch.has, ("torch", "tensorflow")):
        runs += [(framework, "mpi"), *([(framework, "horovod")] if launch.has("horovod") else [])]
    anew = sys.argv[1:] == ["--write"]
    tables: dict[int, Votes] = {}
    differing = 0
    for ranks in RANKS:
        table = tables[ranks] = {} if anew else read(ranks)
        for framework, runtime in runs:
            with tempfile.TemporaryDirectory() as folder:
                found = votes(framework, runtime, ranks, DTYPES, Path(folder))
            if anew:
                for key, row in found.items():
                    table.setdefault(key, row)
            lines = differences(found, table)
            differing += len(lines)
            print(f"{framework} on {runtime}, {ranks} ranks: {len(found)} rows", *lines, sep="\n  ")
    if anew and not differing:
        write(tables)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
