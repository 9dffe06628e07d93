"""Launches of real MPI ranks: command lines, one watched run, and what its ranks reported.

A launch runs in a session of its own under two limits, one for the whole and (through the trace
files that the ranks write, see ranks/agreement.py) one for each test. When either passes, every
process of the launch is killed, wherever the launcher put it, and the report says what each rank
was doing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

RANKS = Path(__file__).resolve().parent / "ranks"
REPO = RANKS.parent.parent
MARK = "HVD_SIGN_TEST_LAUNCH"
SHOWN = 12  # failures that a report gives in full
GRACE = 4.0  # seconds between the first rank's trace and the kill, so that all traces are written

# What a launcher leaves in the environment of its children; a nested launcher must not see it.
INHERITED = re.compile(r"(OMPI_COMM_|OMPI_UNIVERSE|OMPI_MCA_(orte_|ess|initial)|PMIX_|PMI_|HYDI_)")


@dataclass
class Outcome:
    """How one launch ended: its exit code, its text, and the records of its ranks."""

    command: list[str]
    returncode: int
    output: str
    seconds: float
    killed: str = ""
    ranks: dict[int, list[dict]] = field(default_factory=dict)
    traces: dict[int, str] = field(default_factory=dict)
    consoles: dict[int, str] = field(default_factory=dict)

    def records(self, kind: str, rank: int = 0) -> list[dict]:
        return [record for record in self.ranks.get(rank, []) if record["kind"] == kind]

    def passed(self) -> set[str]:
        """Tests that passed on every rank (the ranks agree on each outcome)."""
        return {r["test"] for r in self.records("end") if r["outcome"] == "passed"}

    def report(self) -> str:
        """Everything a reader needs who was not there."""
        lines = [f"command: {' '.join(self.command)}", f"exit code {self.returncode}"]
        lines.append(f"{len(self.passed())} inner tests passed in {self.seconds:.1f} s")
        if self.killed:
            lines.append(f"KILLED: {self.killed}")
        for rank, records in sorted(self.ranks.items()):
            begun = [r["test"] for r in records if r["kind"] == "begin"]
            ended = {r["test"] for r in records if r["kind"] == "end"}
            if begun and begun[-1] not in ended:
                lines.append(f"rank {rank}: still in {begun[-1]}")
        lines += self._failures()
        for rank, trace in sorted(self.traces.items()):
            lines.append(f"--- rank {rank}, stacks when its time was up:\n{trace}")
        lines.append(f"--- output of the launch (tail):\n{self.output[-4000:]}")
        for rank, text in sorted(self.consoles.items()):
            if text.strip() and (self.killed or self.returncode):
                lines.append(f"--- console of rank {rank} (tail):\n{text[-1500:]}")
        return "\n".join(lines)

    def _failures(self) -> list[str]:
        """The failures, each text once, the first few in full."""
        texts: dict[str, list[str]] = {}
        for rank, records in sorted(self.ranks.items()):
            for r in records:
                if r["kind"] == "failure":
                    where = f"rank {rank}, {r['test']} ({r['phase']})"
                    texts.setdefault(r["text"], []).append(where)
        lines = []
        for text, places in list(texts.items())[:SHOWN]:
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            lines.append(f"--- {'; '.join(places[:3])}{more}:\n{text}")
        if len(texts) > SHOWN:
            lines.append(f"--- and {len(texts) - SHOWN} other failures")
        return lines


def has(module: str) -> bool:
    """Whether a real module of this name is installed (not a bare folder of the same name)."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None


def find(program: str) -> str | None:
    """A program beside this interpreter, else on PATH."""
    beside = Path(sys.executable).parent / program
    return str(beside) if beside.exists() else shutil.which(program)


@functools.cache
def launcher() -> tuple[str, str]:
    """mpirun's path and its kind: 'openmpi4', 'openmpi5' or 'hydra'."""
    path = find("mpirun") or find("mpiexec")
    if path is None:
        raise RuntimeError("no mpirun beside this Python nor on PATH: install an MPI, or mend PATH")
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"\(Open(?: MPI|RTE|PRTE)\) (\d+)|Open MPI\D*(\d+)", text)
    if version is None:
        return path, "hydra"
    return path, "openmpi4" if int(version[1] or version[2]) < 5 else "openmpi5"


def mpirun(ranks: int) -> list[str]:
    path, kind = launcher()
    shared = {
        "openmpi4": ["--oversubscribe", "--bind-to", "none"],
        "openmpi5": ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"],
        "hydra": ["-bind-to", "none"],
    }
    return [path, *shared[kind], "-np", str(ranks)]


def horovodrun(ranks: int, *, gloo: bool = False) -> list[str]:
    path = find("horovodrun")
    if path is None:
        raise RuntimeError("no horovodrun beside this Python nor on PATH")
    command = [path, "-np", str(ranks), "--gloo" if gloo else "--mpi"]
    if not gloo and launcher()[1] == "openmpi5":  # its own default arguments are refused there
        command.append("--binding-args=--bind-to none --map-by slot:OVERSUBSCRIBE")
    return command


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not INHERITED.match(key)}
    folders = [str(Path(sys.executable).parent)]
    with contextlib.suppress(RuntimeError):
        folders.append(str(Path(launcher()[0]).parent))
    env["PATH"] = os.pathsep.join([*folders, env.get("PATH", "")])
    env.update(
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        PYTHONUNBUFFERED="1",
        PYTHONFAULTHANDLER="1",
        OMPI_MCA_mpi_yield_when_idle="1",
        OMPI_MCA_rmaps_base_oversubscribe="1",
        OMPI_MCA_hwloc_base_binding_policy="none",
        OMPI_MCA_btl_vader_single_copy_mechanism="none",
        PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe",
        PRTE_MCA_hwloc_default_binding_policy="none",
        HOROVOD_CYCLE_TIME=os.environ.get("HOROVOD_CYCLE_TIME", "2"),
    )
    if os.geteuid() == 0:
        for prefix in ("OMPI", "PRTE"):
            env[f"{prefix}_ALLOW_RUN_AS_ROOT"] = env[f"{prefix}_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    env.update(extra or {})
    return env


def run(
    command: list[str],
    folder: Path,
    *,
    limit: float,
    extra: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Outcome:
    """Run one launch for at most `limit` seconds; its ranks report in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    env = environment(extra) | {MARK: mark, "HVD_SIGN_TEST_REPORT": str(folder)}
    began = time.monotonic()
    killed = ""
    with (folder / "output").open("w+b") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd or folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            traced = 0.0
            while process.poll() is None and not killed:
                time.sleep(0.1)
                now = time.monotonic()
                if not traced and any(f.stat().st_size for f in folder.glob("trace.*")):
                    traced = now
                if traced and now - traced > GRACE:
                    killed = "a test passed its own time limit"
                elif now - began > limit:
                    killed = f"the launch passed its limit of {limit:g} s"
        finally:
            kill(process, mark)
    return Outcome(
        command=command,
        returncode=process.returncode,
        output=(folder / "output").read_text(errors="replace"),
        seconds=time.monotonic() - began,
        killed=killed,
        ranks={_rank(f): _records(f) for f in folder.glob("log.*")},
        traces={_rank(f): f.read_text() for f in folder.glob("trace.*") if f.stat().st_size},
        consoles={_rank(f): f.read_text(errors="replace") for f in folder.glob("console.*")},
    )


def kill(process: subprocess.Popen, mark: str) -> None:
    """End the launch: its process group, then whatever else carries its mark."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> list[int]:
    """Processes with the launch's mark in their environment (launchers start new sessions)."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in environ.read_bytes():
                found.append(int(environ.parent.name))
    return found


def _rank(file: Path) -> int:
    return int(file.suffix[1:])


def _records(file: Path) -> list[dict]:
    """A rank's records; the last line may be cut where the rank was killed."""
    records = []
    for line in file.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records
