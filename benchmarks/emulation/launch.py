"""Starts a benchmark's ranks, emulated or on a job's nodes, and follows what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.emulation import allocation, netns
from benchmarks.emulation.hosts import EmulatedCluster, bits_per_second, why_no_mpirun
from benchmarks.errors import BenchError
from benchmarks.methods.catalogue import by_environment

NETWORKS = ("auto", "cluster", "loopback", allocation.MODE)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
POLL_SECONDS = 0.1
STALL_SECONDS = 180.0
GRACE_SECONDS = 10.0
SHOWN_LINES = 15
PLAIN_WIDTH = 170  # of the output where there is no terminal


class LaunchError(BenchError):
    """The ranks cannot be started, failed or fell silent; the message says why."""


@dataclass(frozen=True)
class Network:
    """Where the ranks run.

    Attributes:
        mode: 'cluster' (one network namespace a worker), 'loopback' or 'allocation' (of a job).
        workers: how many ranks.
        launcher: the program that starts them.
        why: why this mode, in words.
        rate: each worker's limit each way in tc's words; None: no limit.
        bits_per_second: the same as a number.
        measured: bits per second that each host really sent before the run.
        interface: the interface whose counter shows one worker's traffic; None: there is none.
        nodes: how many hosts the workers are spread over; None: the mode tells.
        command: program and arguments -> the command line that runs it on all workers.
    """

    mode: str
    workers: int
    launcher: str
    why: str
    command: Callable[[Sequence[str]], list[str]] = field(repr=False)
    rate: str | None = None
    bits_per_second: float | None = None
    measured: list[float] | None = None
    interface: str | None = None
    nodes: int | None = None

    def describe(self) -> dict[str, Any]:
        """Everything but the command, for a result file."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "command"}


def check_launcher(mode: str, workers: int, rate: str | None) -> None:
    """Checks what `network` will need. Raises BenchError."""
    if mode == allocation.MODE:
        allocation.given(workers)
        return
    if workers < 2:
        raise LaunchError(f"--workers: expected 2 or more, got {workers}")
    try:
        if rate is not None:
            bits_per_second(rate)
    except ValueError as error:
        raise LaunchError(f"--{error}") from error
    reason = _why_no_cluster()
    if mode == "cluster" and reason:
        raise LaunchError(reason)
    if (mode == "loopback" or reason) and shutil.which("mpirun") is None:
        raise LaunchError("mpirun is not on PATH: install Open MPI, or run `make bench`")


@contextmanager
def network(mode: str, workers: int, rate: str | None) -> Iterator[Network]:
    """The network to run on; 'auto' takes the emulated cluster where that can be had.

    Raises BenchError, and ClusterError if the cluster fails or its limit does not bind.
    """
    check_launcher(mode, workers, rate)
    if mode == allocation.MODE:
        held = allocation.given(workers)
        yield Network(
            mode,
            workers,
            held.launcher,
            "the job holds its nodes",
            lambda argv: [*held.command, *argv],
            interface=held.interface,
            nodes=held.nodes,
        )
        return
    reason = _why_no_cluster()
    if mode == "loopback" or reason:
        why = "asked for" if mode == "loopback" else str(reason)
        launcher = "horovodrun" if shutil.which("horovodrun") else "mpirun"
        line = _horovodrun(workers) if launcher == "horovodrun" else _mpirun(workers)
        yield Network("loopback", workers, launcher, why, lambda argv: [*line, *argv])
        return
    with EmulatedCluster(workers, rate) as cluster:
        yield Network(
            "cluster",
            workers,
            "mpirun",
            "asked for" if mode == "cluster" else "the rights for it are there",
            cluster.mpirun_command,
            rate,
            cluster.limit,
            cluster.check_limit(),
            "eth0",
        )


def measure(
    network: Network, module: str, config: Mapping[str, Any], folder: Path
) -> closing[Iterator[dict[str, Any]]]:
    """Runs a benchmark's program on all ranks; a context manager of its events.

    Methods that need another environment get ranks of their own, started when the others have
    ended; all events come in one row.

    Args:
        network: where.
        module: run as `python -m MODULE CONFIG EVENTS`.
        config: what the ranks read from CONFIG; `methods`: names of those to measure.
        folder: gets both files, and the ranks' output; the second ranks' are called `config-2.json`
            and so on.

    Raises LaunchError.
    """
    return closing(_measure(network, module, config, folder))


def _measure(
    network: Network, module: str, config: Mapping[str, Any], folder: Path
) -> Iterator[dict[str, Any]]:
    for number, (environment, names) in enumerate(by_environment(config["methods"]), 1):
        suffix = f"-{number}" if number > 1 else ""
        config_path, events = folder / f"config{suffix}.json", folder / f"events{suffix}.jsonl"
        config_path.write_text(json.dumps({**config, "methods": names}, indent=1) + "\n")
        line = network.command([sys.executable, "-m", module, str(config_path), str(events)])
        yield from follow(line, events, folder / f"ranks{suffix}.log", environment=environment)


def follow(
    command: Sequence[str],
    events: Path,
    log: Path,
    stall: float = STALL_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Runs a command line and yields the events that its rank 0 appends to a file, to their end.

    Whatever happens, no process of it is left. Output of the ranks goes to `log`; they see the
    variables of `environment` beside ours. Raises LaunchError if the command fails or sends no
    event for `stall` seconds.
    """
    events.touch()
    whole = {**os.environ, **(environment or {})}
    with (
        log.open("wb") as output,
        events.open() as reader,
        _running(command, output, whole) as process,
    ):
        heard = time.monotonic()
        while True:
            ended = process.poll() is not None
            fresh = _lines(reader)
            if fresh:
                heard = time.monotonic()
            yield from fresh
            if ended:
                break
            if time.monotonic() - heard > stall:
                raise LaunchError(f"no sign of life for {stall:.0f} s{_tail(log)}")
            time.sleep(POLL_SECONDS)
        if process.returncode:
            raise LaunchError(f"the ranks failed, status {process.returncode}{_tail(log)}")


def _lines(reader: Any) -> list[dict[str, Any]]:
    """The whole lines that came; half a line is left for the next time."""
    found = []
    while True:
        start = reader.tell()
        line = reader.readline()
        if not line.endswith("\n"):
            reader.seek(start)
            return found
        found.append(json.loads(line))


@contextmanager
def _running(
    command: Sequence[str], output: Any, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with netns.signals_wait():
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the launcher to end its ranks, then ends what is left."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    # Ranks have process groups of their own, so killing the launcher's would leave them.
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.kill()
    process.wait()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    shown = "\n".join(lines[-SHOWN_LINES:])
    return f"; the end of {log}:\n{shown}" if lines else ", without a word"


def _why_no_cluster() -> str | None:
    return netns.why_unavailable() or why_no_mpirun()


def _horovodrun(workers: int) -> list[str]:
    line = ["horovodrun", "--mpi", "-np", str(workers)]
    if (_open_mpi() or 0) >= 5:
        # It refuses the single dashes that horovodrun gives it.
        line.append("--binding-args=--bind-to none --map-by slot")
    return line


def _mpirun(workers: int) -> list[str]:
    """Open MPI counts cores, and must be told that ranks may share them; Hydra does not."""
    line = ["mpirun", "-np", str(workers), "-bind-to", "none"]
    major = _open_mpi()
    if major is not None:
        line[3] = "--bind-to"
        line += ["--oversubscribe"] if major < 5 else ["--map-by", ":OVERSUBSCRIBE"]
    return line


def _open_mpi() -> int | None:
    """Its major version; None for another MPI."""
    found = re.search(r"\(Open MPI\) (\d+)", mpi_version())
    return int(found[1]) if found else None


def mpi_version() -> str:
    """The first line of `mpirun --version`; empty without mpirun."""
    try:
        said = subprocess.run(
            ["mpirun", "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except OSError:
        return ""
    return said.stdout.strip().partition("\n")[0]


def command_line(name: str, run: Callable[[Console], Any]) -> int:
    """Runs a benchmark with the environment its ranks need, and turns errors into sentences.

    Args:
        name: of the benchmark, before a sentence of an error.
        run: does it all and prints to the console that it is given.

    Returns:
        the exit status; 2: it could not be done, 130: interrupted.
    """
    # This Python's own programs come first: its mpirun is the one that mpi4py was made for.
    folder = str(Path(sys.executable).parent)
    os.environ["PATH"] = folder + os.pathsep + os.environ.get("PATH", os.defpath)
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    try:
        with netns.signals_raise():
            run(console)
    except (BenchError, netns.ClusterError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
