"""A Slurm of several nodes on one machine: munge, a controller, and a slurmd for each node.

Each node has its own host name, /dev/shm and PMIx directory in namespaces of its own, so that ranks
on different nodes are to each other what ranks on different hosts are. Everything lives in one
temporary folder, every wait has a limit, and no process or file outlasts the `with`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import launch

from scripts import guard

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "unshare")
START_SECONDS = 30.0
# What a login shell of one job must not see of another, nor of the launcher of these tests.
FOREIGN = ("SLURM_", "SBATCH_", "PMIX_", "PMI_", "OMPI_", "PRTE_", "HVD_SIGN_", "HOROVOD_")

CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
{nodes}
PartitionName=debug Nodes=ALL Default=YES State=UP OverSubscribe=YES
"""
NODE = (
    "NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 "
    "State=UNKNOWN"
)
# $0 is the node's name, $1 where each has a folder of its own for PMIx, $2 the /etc/hosts of all.
ENTER = (
    "mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs $1 && mount --bind $2 /etc/hosts && "
    "hostname $0 && exec slurmd -D -N $0 -f $3"
)


class SlurmError(RuntimeError):
    """The local Slurm did not start, or a job did not end in time; carries the logs' ends."""


def why_unavailable() -> str | None:
    """Why there can be no local Slurm here, in one sentence; None if there can."""
    if os.geteuid():
        return "a Slurm of several nodes on one machine needs root, for namespaces of their own"
    missing = [program for program in PROGRAMS if _find(program) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    probe = ["unshare", "--mount", "--uts", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "needs mount and host name namespaces, which this machine does not allow"
    return None


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


class LocalSlurm:
    """The running cluster.

    Attributes:
        folder: holds all its files.
        nodes: names of the nodes.
        environment: what its clients need, and the jobs get.
    """

    def __init__(self, nodes: int = 4) -> None:
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.folder = Path(tempfile.mkdtemp(prefix="local-slurm-"))
        self.folder.chmod(0o755)
        self._mark = uuid.uuid4().hex
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._namespaces: set[str] = set()
        kept = {
            key: value
            for key, value in os.environ.items()
            if key == guard.MARK or not key.startswith(FOREIGN)
        }
        self.environment = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{kept.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            launch.MARK: self._mark,
        }

    def __enter__(self) -> LocalSlurm:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self._write_files()
        folder, conf = self.folder, str(self.folder / "slurm.conf")
        key, socket_path = folder / "munge.key", folder / "munge.socket"
        files = [f"--{name}={folder}/munge.{name[:4]}" for name in ("pid-file", "log-file")]
        self._daemon(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_path}"),
            *(*files, f"--seed-file={folder}/munge.seed"),
        )
        self.wait_for(socket_path.exists, START_SECONDS, "munged")
        self._daemon("slurmctld", "slurmctld", "-D", "-f", conf)
        for node in self.nodes:
            namespaces = ("unshare", "--mount", "--uts", "--propagation", "private")
            arguments = (node, str(folder / "pmix"), str(folder / "hosts"), conf)
            self._daemon(f"slurmd.{node}", *namespaces, "sh", "-c", ENTER, *arguments)
        self.wait_for(self._all_idle, START_SECONDS, "nodes that are idle")
        self._namespaces = {_mounts(daemon.pid) for daemon in self._daemons} - {_mounts("self")}

    def _write_files(self) -> None:
        folder, host = self.folder, socket.gethostname()
        for name in ("state", "pmix", *(f"spool.{node}" for node in self.nodes)):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        ports = _free_ports(1 + len(self.nodes))
        nodes = "\n".join(
            NODE.format(number=number, host=host, port=port)
            for number, port in enumerate(ports[1:], 1)
        )
        (folder / "slurm.conf").write_text(
            CONF.format(host=host, ports=ports, folder=folder, nodes=nodes)
        )
        (folder / "mpi.conf").write_text(f"PMIxCliTmpDirBase={folder}/pmix\n")
        # Addresses of the loopback's that are not its first one look like other hosts.
        named = [f"127.0.1.{number} {node}\n" for number, node in enumerate(self.nodes, 1)]
        (folder / "hosts").write_text(Path("/etc/hosts").read_text() + "\n" + "".join(named))

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.output").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )

    def _all_idle(self) -> bool:
        dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
        if dead:
            raise SlurmError(f"{dead} ended\n{self.logs()}")
        with contextlib.suppress(subprocess.SubprocessError):
            said = self.run("sinfo", "-h", "-N", "-o", "%T").stdout.split()
            return said == ["idle"] * len(self.nodes)
        return False

    def run(
        self, *command: str, cwd: Path | None = None, limit: float = 30, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a client program, as sbatch, and returns what it says. Raises if it fails."""
        return subprocess.run(
            command,
            cwd=cwd or self.folder,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=True,
        )

    def states(self, job: str) -> list[str]:
        """The states of a job's tasks that are not over."""
        with contextlib.suppress(subprocess.CalledProcessError):  # long over: not known any more
            return self.run("squeue", "-h", "-r", "-j", job, "-o", "%T").stdout.split()
        return []

    def wait(self, job: str, limit: float) -> None:
        """Returns when a job is over. Raises SlurmError after `limit` seconds, and ends the job."""
        try:
            self.wait_for(lambda: not self.states(job), limit, f"the end of job {job}")
        except SlurmError:
            self.run("scancel", job)
            raise

    def exit_codes(self, job: str) -> set[str]:
        """The exit codes of a job that is over, as Slurm has them: status:signal."""
        said = self.run("scontrol", "show", "job", job, "--oneliner").stdout
        return {word.removeprefix("ExitCode=") for word in said.split() if "ExitCode=" in word}

    def wait_for(self, true: Callable[[], bool], limit: float, what: str) -> None:
        """Polls until `true()`. Raises SlurmError after `limit` seconds."""
        end = time.monotonic() + limit
        while not true():
            if time.monotonic() > end:
                raise SlurmError(f"waited {limit:g} s for {what}\n{self.logs()}")
            time.sleep(0.25)

    def logs(self) -> str:
        """The ends of all daemons' logs."""
        found = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.output")])
        ends = [(path, path.read_text(errors="replace").splitlines()[-15:]) for path in found]
        return "\n".join(f"--- {path.name}\n" + "\n".join(end) for path, end in ends if end)

    def stop(self) -> None:
        """Ends every job, daemon and process of the cluster, and removes its folder."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.run("scancel", "--user=root", "--signal=KILL", limit=5)
        for sent, grace in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for daemon in reversed(self._daemons):
                if daemon.poll() is None:
                    daemon.send_signal(sent)
            end = time.monotonic() + grace
            for daemon in self._daemons:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.wait(max(0.1, end - time.monotonic()))
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> set[int]:
        """Those that carry its mark, and those on its nodes: slurmstepd writes over its own."""
        pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
        on_nodes = {pid for pid in pids if _mounts(pid) in self._namespaces - {""}}
        return on_nodes | set(launch.marked(self._mark))

    def left(self) -> list[str]:
        """What the cluster left behind: processes, and its folder."""
        found = [f"process {pid}" for pid in self._processes()]
        return found + ([str(self.folder)] if self.folder.exists() else [])


def _mounts(pid: int | str) -> str:
    """A process's namespace of mounts; empty if it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def cluster(nodes: int = 4) -> Iterator[LocalSlurm]:
    """A running cluster; it is checked that nothing of it is left. SIGTERM is like Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        made = LocalSlurm(nodes)
        with made:
            yield made
    finally:
        signal.signal(signal.SIGTERM, before)
    end = time.monotonic() + 10
    while made.left() and time.monotonic() < end:
        time.sleep(0.1)
    assert made.left() == []
