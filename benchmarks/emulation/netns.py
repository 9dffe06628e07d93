"""Network namespaces for the emulated cluster: made, measured and removed by iproute2.

Every namespace of ours is called ``hvdsign-<owner>-<part>``. The owner is ``up`` for the cluster
that outlives its command, else ``<pid>.<start time>`` of the process that made it, so that what a
killed process left behind can be told from what a living one uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

PREFIX = "hvdsign"
UP = "up"
TOOLS = ("ip", "tc", "unshare", "hostname")
CLONE_NEWNET = 0x40000000
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
Handler = Callable[[int, FrameType | None], None] | signal.Handlers


class ClusterError(RuntimeError):
    """The emulated cluster could not be made, or does not do what it promises."""


class ClusterUnavailableError(ClusterError):
    """This machine or this user cannot have an emulated cluster; the sentence says why."""


def why_unavailable() -> str | None:
    """Returns why no cluster can be made here, in one sentence with the remedy; None if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"the emulated cluster needs {', '.join(missing)}: install iproute2 and util-linux"
    status = Path("/proc/self/status").read_text()
    held = next(int(line.split()[1], 16) for line in status.splitlines() if "CapEff" in line)
    if not all(held >> capability & 1 for capability in (CAP_NET_ADMIN, CAP_SYS_ADMIN)):
        return (
            "the emulated cluster makes network namespaces, which needs root "
            "(CAP_NET_ADMIN and CAP_SYS_ADMIN): run as root, or use loopback"
        )
    return None


def rate_or_none(text: str) -> str | None:
    """Returns what a command line's ``--rate`` says; ``none``: no limit."""
    return None if text == "none" else text


def command(*argv: str) -> str:
    """Runs a tool of iproute2 and returns its output.

    Raises:
        ClusterError: the tool failed; carries what it said.
    """
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ClusterError(f"`{' '.join(argv)}` failed: {said}")
    return done.stdout


def start_time(pid: int) -> str | None:
    """Returns when a process began, in clock ticks since boot; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def own_name() -> str:
    """Returns the owner part of the names that this process gives its namespaces."""
    return f"{os.getpid()}.{start_time(os.getpid())}"


def existing() -> dict[str, list[str]]:
    """Returns the namespaces of ours on this machine: owner -> full names."""
    found: dict[str, list[str]] = {}
    folder = Path("/run/netns")
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        parts = name.split("-")
        if len(parts) == 3 and parts[0] == PREFIX:
            found.setdefault(parts[1], []).append(name)
    return found


def orphaned(owner: str) -> bool:
    """True if the process that made these namespaces is gone."""
    pid, _, began = owner.partition(".")
    return owner != UP and (not pid.isdigit() or start_time(int(pid)) != began)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into SystemExit inside the block, so that it is cleared up."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handled(leave, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Lets no SIGINT, SIGTERM or SIGHUP stop the block: a second Ctrl-C while clearing up."""
    with _handled(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def _handled(handler: Handler, *numbers: int) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it gets the exceptions
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def processes(names: Iterable[str]) -> list[int]:
    """Returns the processes that live in these namespaces."""
    return [int(pid) for name in names for pid in command("ip", "netns", "pids", name).split()]


def kill(names: Iterable[str]) -> None:
    """Ends every process in these namespaces, without asking it."""
    for pid in processes(names):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def remove(names: Iterable[str]) -> None:
    """Removes these namespaces with their processes, interfaces and limits."""
    for name in names:
        try:
            kill([name])
            command("ip", "netns", "del", name)
        except ClusterError:
            if Path("/run/netns", name).exists():
                raise  # else another process has just removed it too


def bytes_out(name: str) -> int:
    """Returns the bytes that left the host's interface: headers and retransmissions included."""
    shown = json.loads(command("ip", "-n", name, "-s", "-j", "link", "show", "dev", "eth0"))
    return int(shown[0]["stats64"]["tx"]["bytes"])


def socket_in(name: str) -> socket.socket:
    """Returns a TCP socket that lives in the namespace, for a process that does not."""
    made: list[socket.socket] = []
    failed: list[str] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{name}", "rb") as handle:
            if libc.setns(handle.fileno(), CLONE_NEWNET):
                failed.append(os.strerror(ctypes.get_errno()))
                return
        made.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    # A thread has a network namespace of its own, and a socket keeps the one it was made in.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failed:
        raise ClusterError(f"cannot enter namespace {name}: {failed[0]}")
    return made[0]


def measured_rate(source: str, target: str, address: str, seconds: float) -> float:
    """Sends over TCP from one host to another as fast as it goes.

    Returns:
        bits per second that left the source's interface, after the first burst.
    """
    with socket_in(target) as server, socket_in(source) as sender:
        server.bind((address, 0))
        server.listen(1)
        sender.settimeout(10)
        sender.connect(server.getsockname())
        receiver, _ = server.accept()
        stop = threading.Event()
        data = bytes(1 << 18)
        threads = [
            threading.Thread(target=_repeat, args=(stop, lambda: sender.send(data))),
            threading.Thread(target=_repeat, args=(stop, lambda: receiver.recv(len(data)))),
        ]
        with receiver:
            for thread in threads:
                thread.start()
            time.sleep(0.3)  # the token bucket's burst, and TCP's slow start
            begin, before = time.monotonic(), bytes_out(source)
            time.sleep(seconds)
            end, after = time.monotonic(), bytes_out(source)
            stop.set()
            sender.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
    return 8 * (after - before) / (end - begin)


def _repeat(stop: threading.Event, move: Callable[[], int | bytes]) -> None:
    try:
        while not stop.is_set() and move():
            pass
    except OSError:
        if not stop.is_set():
            raise
