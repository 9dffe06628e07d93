"""Submits the scripts of `slurm/` to Slurm, shows how they fare, and reports what they measured.

    python -m benchmarks.submit allreduce --nodes 4 --time 00:20:00 -- -b 1K -e 256M -f 4
    python -m benchmarks.submit train --nodes 1,2,4,8 --gpus-per-node 4 --ranks-per-node 4
    python -m benchmarks.submit accuracy --nodes 4 --set METHOD=fp32 -- --epochs 100
    python -m benchmarks.submit job --nodes 2 -- train.py --lr 0.1
    python -m benchmarks.submit gather results/2024-02-29-submit-train

Arguments behind `--` are the script's own. Each number of nodes is a job; `train` makes of each an
array, for weak and for strong scaling. Ctrl-C leaves the jobs in the queue; `gather DIR` waits for
them again. Settings (--set) are described in slurm/common.sh and in the scripts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from benchmarks import report
from benchmarks.emulation import launch
from benchmarks.errors import BenchError
from benchmarks.jobs import queue
from benchmarks.jobs.script import FLAG, Job, directives, render
from benchmarks.reporting import results

KINDS = ("allreduce", "train", "job", "accuracy")
GATHER = "gather"
SCALINGS = ("weak", "strong")  # by the tasks of train.sbatch's array
RECORD = "jobs.json"
SHOWN_LINES = 15
LOOKS = 3
SCRIPTS = results.ROOT / "slurm"


@dataclass(frozen=True)
class Submitted:
    """A job in the queue.

    Attributes:
        title: of the job.
        number: Slurm's.
        folders: one a task, which the job makes; its `status` tells how the task ended.
    """

    title: str
    number: str
    folders: list[Path]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.submit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("kind", choices=(*KINDS, GATHER))
    add("folder", nargs="?", type=Path, metavar="DIR", help="of a submission, for gather")
    add("--nodes", type=_numbers, default=[2], metavar="N[,N...]", help="a job for each (2)")
    add("--ranks-per-node", type=int, default=1, help="as many as GPUs, or as sockets (1)")
    add("--cpus-per-rank", help="sbatch's --cpus-per-task")
    add("--gpus-per-node", help="what sbatch takes: a number, or type:number")
    for name in ("time", "partition", "account"):
        add(f"--{name}", help=f"sbatch's --{name}")
    add("--sbatch", action="append", default=[], metavar="NAME[=VALUE]", help="other directives")
    add("--launcher", help="srun, mpirun or horovodrun (srun)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="other settings")
    add("--scaling", type=_scalings, default=[0, 1], metavar="weak,strong", help="of train (both)")
    add("--serial", action="store_true", help="each job starts when the one before is over")
    add("--out", type=Path, default=Path("results"), help="where the directory is made")
    add("--poll", type=float, default=5.0, metavar="SECONDS", help="between looks (%(default)s)")
    add("--dry-run", action="store_true", help="print the scripts, and submit nothing")
    add("--test-only", action="store_true", help="let Slurm check them, and submit nothing")
    add("--no-wait", action="store_true", help="submit, and leave the rest to `gather`")
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:end])
    given.arguments = words[end + 1 :]
    if (given.kind == GATHER) is (given.folder is None):
        parser.error("gather, and nothing else, takes the directory of a submission")
    return given


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"expected numbers above 0, as in 1,2,4, got {text!r}")
    return sorted({int(word) for word in words})


def _scalings(text: str) -> list[int]:
    words = text.split(",")
    if not set(words) <= set(SCALINGS):
        raise argparse.ArgumentTypeError(f"expected weak, strong or both, got {text!r}")
    return sorted({SCALINGS.index(word) for word in words})


def jobs(given: argparse.Namespace, folder: Path) -> list[Job]:
    """The jobs of a command line, the fewest nodes first, whose output lands in `folder`."""
    asked = {
        "cpus-per-task": given.cpus_per_rank,
        "gpus-per-node": given.gpus_per_node,
        "time": given.time,
        "partition": given.partition,
        "account": given.account,
        **_pairs("--sbatch", given.sbatch, flags=True),
    }
    settings = _pairs("--set", given.set)
    if given.launcher:
        settings["LAUNCHER"] = given.launcher
    tasks = tuple(given.scaling) if given.kind == "train" else ()
    output = folder / ("%x-%A_%a.out" if tasks else "%x-%j.out")
    return [
        Job(
            kind=given.kind,
            nodes=nodes,
            ranks_per_node=given.ranks_per_node,
            directives={
                **{name: value for name, value in asked.items() if value is not None},
                "output": str(output),
            },
            settings={"RESULTS": str(folder), **settings},
            arguments=given.arguments,
            tasks=tasks,
        )
        for nodes in given.nodes
    ]


def _pairs(option: str, texts: Sequence[str], flags: bool = False) -> dict[str, str]:
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not (separator or flags):
            raise BenchError(f"{option}: expected NAME=VALUE, got {text!r}")
        found[name] = value if separator else FLAG
    return found


def run(given: argparse.Namespace, console: Console) -> None:
    """Does what the command line says."""
    if given.kind == GATHER:
        gather(given.folder, given.poll, console)
        return
    if given.kind == "job" and not given.arguments:
        raise BenchError("job: expected -- and a script of yours, as in -- train.py --lr 0.1")
    if given.ranks_per_node < 1:
        raise BenchError(f"--ranks-per-node: expected 1 or more, got {given.ranks_per_node}")
    script = (SCRIPTS / f"{given.kind}.sbatch").read_text()
    name = f"submit-{given.kind}"
    if given.dry_run:
        for job in jobs(given, given.out.resolve() / name):
            console.print(render(job, script, results.ROOT), markup=False, soft_wrap=True)
        return
    folder = results.create_directory(given.out.resolve(), name)
    submitted: list[Submitted] = []
    for job in jobs(given, folder):
        path = folder / f"{job.title}.sbatch"
        path.write_text(render(job, script, results.ROOT))
        if given.test_only:
            console.print(f"{job.title}: {queue.submit(path, test_only=True)}")
            continue
        after = submitted[-1].number if given.serial and submitted else None
        number = queue.submit(path, after)
        name = {**directives(script), **job.directives}["job-name"]
        ends = [f"_{task}" for task in job.tasks] or [""]
        folders = [folder / f"{name}-{number}{end}" for end in ends]
        submitted.append(Submitted(job.title, number, folders))
        _record(folder, submitted)
        console.print(f"{job.title}: job {number}")
    if given.test_only:
        return
    console.print(f"scripts, output and results: {folder}")
    if given.no_wait:
        console.print(f"wait and report: python -m benchmarks.submit gather {folder}")
        return
    gather(folder, given.poll, console)


def _record(folder: Path, submitted: Sequence[Submitted]) -> None:
    told = [
        {"title": job.title, "number": job.number, "folders": [one.name for one in job.folders]}
        for job in submitted
    ]
    (folder / RECORD).write_text(json.dumps(told, indent=1) + "\n")


def gather(folder: Path, poll: float, console: Console) -> None:
    """Waits for the jobs of a submission, and reports. Raises BenchError where one failed."""
    try:
        told: list[dict[str, Any]] = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"gather: {folder} is not of a submission: {error}") from error
    submitted = [
        Submitted(job["title"], job["number"], [folder / name for name in job["folders"]])
        for job in told
    ]
    wait(submitted, poll, console)
    _settle(submitted, poll)
    _report(folder, console)
    failed = [said for job in submitted for said in map(_failure, job.folders) if said]
    if failed:
        raise BenchError("\n".join(failed))


def wait(submitted: Sequence[Submitted], poll: float, console: Console) -> None:
    """Shows the jobs' states until all are over."""
    columns = ("{task.description}", BarColumn(20), MofNCompleteColumn(), "{task.fields[state]}")
    made = [TextColumn(one) if isinstance(one, str) else one for one in columns]
    with Progress(*made, console=console, refresh_per_second=2) as progress:
        bars = {
            job.number: progress.add_task(job.title, total=len(job.folders), state="")
            for job in submitted
        }
        left = list(submitted)
        while left:
            for job in list(left):
                states = queue.states(job.number)
                if states is None:
                    continue  # Slurm is busy, or restarts
                over = len(job.folders) - sum(states.values())
                said = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
                progress.update(bars[job.number], completed=over, state=said or "over")
                if not states:
                    left.remove(job)
            if left:
                time.sleep(poll)


def _settle(submitted: Sequence[Submitted], poll: float) -> None:
    """Gives a network's file system some time to show here what the nodes wrote."""
    for _ in range(LOOKS):
        if all((folder / "status").exists() for job in submitted for folder in job.folders):
            return
        time.sleep(poll)


def _failure(folder: Path) -> str | None:
    """What is to be said of a task that is over; None if it did what it should."""
    status, log = folder / "status", folder / "job.log"
    ended = status.read_text().strip() if status.exists() else "no status: it was ended, or lost"
    if ended == "0":
        return None
    lines = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:] if log.exists() else []
    return "\n".join([f"{folder.name} failed ({ended}); {log}", *(f"  {line}" for line in lines)])


def _report(folder: Path, console: Console) -> None:
    """Tables, plots and the page of all results, and accuracies."""
    found = sorted(folder.glob(f"*/*/{results.FILE}"))
    if found:
        report.run(argparse.Namespace(results=found, out=folder / "report"), console)
    for path in sorted(folder.glob("*/accuracy.json")):
        told = json.loads(path.read_text())
        shares = ", ".join(f"{share:.2%}" for share in told["accuracies"])
        console.print(f"{told['method']}, {told['ranks']} ranks, right after each epoch: {shares}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    given = parse(argv)
    return launch.command_line("submit", lambda console: run(given, console))


if __name__ == "__main__":
    sys.exit(main())
