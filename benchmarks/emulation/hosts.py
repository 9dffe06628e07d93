"""A cluster on one machine: hosts are network namespaces, joined at a rate that really binds.

    python -m benchmarks.cluster run --hosts 4 --rate 1gbit -- python train.py

runs one rank on each host by Open MPI's mpirun, over TCP, and removes the hosts again. ``up`` makes
hosts that stay, for many ``run`` commands; ``down`` removes them, and whatever a killed run left.

Each host has one interface, eth0 (10.77.0.1 is host 1), whose other end hangs on a bridge. Both
ends are limited by a token bucket: what the host sends, and what it receives. The bridge lives in
a namespace too, so no packet leaves the namespaces, and nothing of the machine's network is
touched. A rate of 10gbit or more is bound by the processor, not by the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.emulation import netns
from benchmarks.emulation.netns import ClusterError, ClusterUnavailableError

SUBNET = "10.77.0"
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
BURST = ("burst", "128kb", "latency", "50ms")
LOWEST, HIGHEST = 0.8, 1.05
# Shared memory would go round the limit. Plain sends and small buffers keep both directions of a
# pair exchange going; without yielding, ranks that outnumber cores starve each other. Daemons that
# stay in mpirun's session share one group of the scheduler: a group each (autogroup) would let a
# waiting rank keep a core from the others for hundreds of milliseconds, which no real host does.
MPIRUN_OPTIONS = shlex.split(
    f"--bind-to none --mca plm rsh --mca plm_rsh_no_tree_spawn 1 --mca pml ob1 --mca btl self,tcp "
    f"--mca oob_tcp_if_include {SUBNET}.0/24 --mca btl_tcp_if_include {SUBNET}.0/24 "
    "--mca btl_tcp_flags send --mca btl_tcp_sndbuf 131072 --mca btl_tcp_rcvbuf 262144 "
    "--mca mpi_yield_when_idle 1 --leave-session-attached"
)
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "eth0",
    "HOROVOD_GLOO_IFACE": "eth0",
    "OMP_NUM_THREADS": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
# mpirun calls it as it would call ssh: the address, then a shell command in one or more words.
AGENT = """#!/bin/sh
host=${{1##*.}}
shift
exec ip netns exec {prefix}-h"$host" unshare --uts sh -c "hostname h$host; $*"
"""


def bits_per_second(rate: str) -> float:
    """Returns a rate in tc's words (``"100mbit"``, ``"1gbit"``) as a number.

    Raises:
        ValueError: not a number with the unit kbit, mbit or gbit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", rate)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"rate: expected a number with kbit, mbit or gbit, got {rate!r}")
    return float(match[1]) * UNITS[match[2]]


class EmulatedCluster:
    """Hosts on one machine, one rank each, joined at a given rate.

    As a context manager it makes the hosts and removes them, also after an exception, Ctrl-C or
    SIGTERM; what an earlier killed process left is removed first.

    Args:
        hosts: how many, 1 to 250.
        rate: of each host's interface, each way, in tc's words; None: no limit.
        owner: part of the namespaces' names; by default this process.

    Raises:
        ValueError: hosts or rate out of range.
    """

    def __init__(self, hosts: int = 4, rate: str | None = "1gbit", owner: str | None = None):
        if not 1 <= hosts <= 250:
            raise ValueError(f"hosts: expected 1 to 250, got {hosts}")
        self.hosts = hosts
        self.rate = rate
        self.limit = None if rate is None else bits_per_second(rate)
        self.owner = owner or netns.own_name()
        self.prefix = f"{netns.PREFIX}-{self.owner}"
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> EmulatedCluster:
        with contextlib.ExitStack() as undo:
            undo.enter_context(netns.signals_raise())
            undo.callback(self.down)
            self.up()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def up(self) -> None:
        """Makes the hosts.

        Raises:
            ClusterUnavailableError: no rights or tools for it here.
            ClusterError: a step failed; what was made stays for ``down``.
        """
        reason = netns.why_unavailable()
        if reason:
            raise ClusterUnavailableError(reason)
        reclaim()
        switch = f"{self.prefix}-switch"
        netns.command("ip", "netns", "add", switch)
        netns.command("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        netns.command("ip", "-n", switch, "link", "set", "bridge", "up")
        for host in range(1, self.hosts + 1):
            self._plug_in(host, switch)

    def _plug_in(self, host: int, switch: str) -> None:
        name, port = self.namespace(host), f"port{host}"
        netns.command("ip", "netns", "add", name)
        link = ("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        netns.command("ip", "-n", switch, *link)
        netns.command("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
        netns.command("ip", "-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        netns.command("ip", "-n", name, "link", "set", "lo", "up")
        netns.command("ip", "-n", name, "link", "set", "eth0", "up")
        if self.rate is not None:
            for where, device in ((name, "eth0"), (switch, port)):
                bucket = ("root", "tbf", "rate", self.rate, *BURST)
                netns.command("tc", "-n", where, "qdisc", "add", "dev", device, *bucket)

    def down(self) -> None:
        """Removes the hosts and ends every process on them; nothing happens if there are none."""
        with netns.signals_wait():
            netns.remove(netns.existing().get(self.owner, []))
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def namespace(self, host: int) -> str:
        """Returns the network namespace of a host, counted from 1."""
        return f"{self.prefix}-h{host}"

    def address(self, host: int) -> str:
        """Returns the IPv4 address of a host, counted from 1."""
        return f"{SUBNET}.{host}"

    def host_command(self, host: int, argv: Sequence[str]) -> list[str]:
        """Returns the command line that runs a program on one host, under that host's name."""
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', f"h{host}")
        return ["ip", "netns", "exec", self.namespace(host), *named, *argv]

    def mpirun_command(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None
    ) -> list[str]:
        """Returns the command line that runs one rank of a program on each host.

        Args:
            argv: the program and its arguments.
            env: variables for the ranks, over those of ``ENVIRONMENT``; the others are inherited.

        Raises:
            ClusterUnavailableError: mpirun is not Open MPI 4.
        """
        reason = why_no_mpirun()
        if reason:
            raise ClusterUnavailableError(reason)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix=f"{self.prefix}-")
        folder = Path(self._folder.name)
        agent, hostfile = folder / "agent", folder / "hosts"
        agent.write_text(AGENT.format(prefix=self.prefix))
        agent.chmod(0o700)
        addresses = (self.address(host) for host in range(1, self.hosts + 1))
        hostfile.write_text("".join(f"{address} slots=1\n" for address in addresses))
        inherited = {key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()}
        pairs = [f"{key}={value}" for key, value in {**inherited, **(env or {})}.items()]
        return self.host_command(
            1,
            [
                *("mpirun", "--allow-run-as-root", "-np", str(self.hosts)),
                *("--hostfile", str(hostfile), "--mca", "plm_rsh_agent", str(agent)),
                *("--mca", "orte_tmpdir_base", str(folder), *MPIRUN_OPTIONS),
                *(word for pair in pairs for word in ("-x", pair)),
                *argv,
            ],
        )

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        capture: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs one rank of a program on each host and waits.

        Args:
            argv: the program and its arguments.
            env: variables for the ranks.
            timeout: seconds after which every process on the hosts is killed.
            capture: keep the output in the result's ``stdout`` (errors included) instead of
                letting it through.

        Raises:
            subprocess.TimeoutExpired: it took longer.
        """
        line = self.mpirun_command(argv, env)
        output = subprocess.PIPE if capture else None
        with subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if capture else None,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, _ = process.communicate(timeout=timeout)
            except BaseException:
                netns.kill([self.namespace(host) for host in range(1, self.hosts + 1)])
                process.kill()
                raise
        return subprocess.CompletedProcess(line, process.returncode, out)

    def bytes_sent(self) -> list[int]:
        """Returns the bytes that each host has sent so far, by its interface's counter.

        Headers, acknowledgements and retransmissions are included.
        """
        return [netns.bytes_out(self.namespace(host)) for host in range(1, self.hosts + 1)]

    def check_limit(self, seconds: float = 0.5, tries: int = 3) -> list[float]:
        """Proves by a TCP transfer from each host to the next that the rate binds.

        Args:
            seconds: that each transfer is measured for.
            tries: how often a host is measured; a busy machine may be too slow at first.

        Returns:
            bits per second of each host, by its interface's counter.

        Raises:
            ClusterError: a host was measured below 0.8 or above 1.05 of the rate, or there is no
                other host to send to.
        """
        if self.hosts == 1:
            raise ClusterError("check_limit: one host has nobody to send to; expected 2 or more")
        return [self._checked(host, seconds, tries) for host in range(1, self.hosts + 1)]

    def _checked(self, host: int, seconds: float, tries: int) -> float:
        target = host % self.hosts + 1
        ends = self.namespace(host), self.namespace(target), self.address(target)
        for _ in range(tries):
            rate = netns.measured_rate(*ends, seconds)
            if self.limit is None or LOWEST <= rate / self.limit <= HIGHEST:
                return rate
        raise ClusterError(
            f"the limit does not bind: host {host} sends {rate / 1e6:.0f} Mbit/s to host {target}, "
            f"expected {LOWEST} to {HIGHEST} of {self.rate}"
        )


def why_no_mpirun() -> str | None:
    """Returns why mpirun cannot span the emulated hosts, in one sentence; None if it can."""
    if shutil.which("mpirun") is None:
        return "the emulated cluster needs mpirun of Open MPI 4: none is on PATH"
    said = subprocess.run(
        ["mpirun", "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    ).stdout
    first = said.strip().partition("\n")[0]
    if "(Open MPI) 4." in first:
        return None
    return f"the emulated cluster needs mpirun of Open MPI 4: the one on PATH says {first!r}"


def reclaim(everything: bool = False) -> list[str]:
    """Removes the namespaces and folders that killed processes left.

    Returns:
        the names of the namespaces.

    Args:
        everything: also those of ``up`` and of processes that are still running.
    """
    gone: list[str] = []
    for owner, names in netns.existing().items():
        if everything or netns.orphaned(owner):
            netns.remove(names)
            gone += names
    for folder in Path(tempfile.gettempdir()).glob(f"{netns.PREFIX}-*-*"):
        if netns.orphaned(folder.name.split("-")[1]):
            shutil.rmtree(folder, ignore_errors=True)
    return gone


def standing() -> EmulatedCluster | None:
    """Returns the cluster that ``up`` made, if there is one."""
    names = netns.existing().get(netns.UP, [])
    hosts = sum("-h" in name for name in names)
    return EmulatedCluster(hosts, None, owner=netns.UP) if hosts else None


def _up(given: argparse.Namespace) -> int:
    if standing() is not None:
        raise ClusterError("a cluster is up already: remove it with `down` first")
    cluster = EmulatedCluster(given.hosts, given.rate, owner=netns.UP)
    with contextlib.ExitStack() as undo:
        undo.enter_context(netns.signals_raise())
        undo.callback(cluster.down)
        cluster.up()
        _check(cluster, given)
        undo.pop_all()
    print(f"{given.hosts} hosts are up at {given.rate or 'no limit'}; `down` removes them")
    return 0


def _run(given: argparse.Namespace) -> int:
    if not given.program:
        raise ClusterError("run: expected a program after --")
    cluster = standing()
    if cluster is not None:
        with netns.signals_raise():
            return cluster.run(given.program, timeout=given.timeout).returncode
    with EmulatedCluster(given.hosts, given.rate) as cluster:
        _check(cluster, given)
        return cluster.run(given.program, timeout=given.timeout).returncode


def _check(cluster: EmulatedCluster, given: argparse.Namespace) -> None:
    if given.check and cluster.limit is not None and cluster.hosts > 1:
        cluster.check_limit()


def _down(given: argparse.Namespace) -> int:
    standing_names = netns.existing().get(netns.UP, [])
    netns.remove(standing_names)
    gone = standing_names + reclaim(everything=given.all)
    print(f"removed {len(gone)} namespaces" if gone else "nothing to remove")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; 2: it could not be done, and why."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="up|run|down")
    up = commands.add_parser("up", help="make hosts that stay")
    run = commands.add_parser("run", help="run one rank of a program on each host")
    down = commands.add_parser("down", help="remove the hosts of `up`, and what killed runs left")
    for made in (up, run):
        made.add_argument("--hosts", type=int, default=4)
        made.add_argument(
            "--rate",
            type=netns.rate_or_none,
            default="1gbit",
            help="100mbit, ..., none (%(default)s)",
        )
        made.add_argument(
            "--no-check",
            dest="check",
            action="store_false",
            help="do not measure first whether the limit binds",
        )
    run.add_argument("--timeout", type=float, help="seconds after which every rank is killed")
    run.add_argument("program", nargs=argparse.REMAINDER, help="-- program arguments")
    down.add_argument("--all", action="store_true", help="also those of running processes")
    for made, action in ((up, _up), (run, _run), (down, _down)):
        made.set_defaults(action=action)
    given = parser.parse_args(argv)
    if getattr(given, "program", [])[:1] == ["--"]:
        given.program = given.program[1:]
    try:
        return int(given.action(given))
    except (ClusterError, ValueError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2
    except subprocess.TimeoutExpired:
        print(f"cluster: killed after {given.timeout:g} s", file=sys.stderr)
        return 124
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
