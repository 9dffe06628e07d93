"""The emulated cluster: its rate binds, it runs a rank per host, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.emulation import hosts, netns
from benchmarks.emulation.hosts import EmulatedCluster, bits_per_second

REPO = Path(__file__).resolve().parent.parent
reason = netns.why_unavailable()
needs_rights = pytest.mark.skipif(reason is not None, reason=reason or "")
needs_mpirun = pytest.mark.skipif(
    hosts.why_no_mpirun() is not None, reason=hosts.why_no_mpirun() or ""
)


def command_line(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cluster", *argv],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def names_of(pid: int) -> list[str]:
    """Namespaces that a process made."""
    owners = netns.existing()
    return [name for owner in owners if owner.startswith(f"{pid}.") for name in owners[owner]]


def wait_until(done, what: str) -> None:
    limit = time.monotonic() + 20
    while not done():
        assert time.monotonic() < limit, f"waited 20 s for {what}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("rate", "expected"), [("100mbit", 1e8), ("1gbit", 1e9), ("2.5gbit", 2.5e9), ("8kbit", 8e3)]
)
def test_rate_is_read_in_the_words_of_tc(rate, expected):
    assert bits_per_second(rate) == expected


@pytest.mark.parametrize("rate", ["fast", "100", "1 gbit", "-1gbit", "0gbit", ""])
def test_rate_that_is_none_is_named(rate):
    with pytest.raises(ValueError, match=rf"^rate: expected a number with .*, got '{rate}'$"):
        EmulatedCluster(2, rate)


@pytest.mark.parametrize("hosts", [0, 251])
def test_number_of_hosts_is_bounded(hosts):
    with pytest.raises(ValueError, match=f"^hosts: expected 1 to 250, got {hosts}$"):
        EmulatedCluster(hosts)


def test_without_rights_it_refuses_in_one_sentence():
    code = (
        "import os, sys; from benchmarks.cluster import main; os.geteuid() or os.setuid(65534);"
        "sys.exit(main(['run', '--', 'true']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("cluster: the emulated cluster")
    assert done.stderr.count("\n") == 1


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(netns.shutil, "which", lambda tool: None if tool == "tc" else f"/x/{tool}")
    assert netns.why_unavailable() == (
        "the emulated cluster needs tc: install iproute2 and util-linux"
    )


def test_another_mpi_is_refused_by_its_name(monkeypatch, tmp_path):
    mpirun = tmp_path / "mpirun"
    mpirun.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    mpirun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert hosts.why_no_mpirun() == (
        "the emulated cluster needs mpirun of Open MPI 4: the one on PATH says "
        "'mpirun (Open MPI) 5.0.11'"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    assert "none is on PATH" in (hosts.why_no_mpirun() or "")


def test_owners_that_are_gone_are_told_from_the_living():
    assert not netns.orphaned(netns.own_name())
    assert not netns.orphaned(netns.UP)
    assert netns.orphaned(f"{os.getpid()}.1")
    assert netns.orphaned("4194305.7")
    assert netns.orphaned("garbage")


@needs_rights
@pytest.mark.parametrize("rate", ["100mbit", "1gbit"])
def test_the_limit_binds(rate):
    with EmulatedCluster(2, rate) as hosts:
        measured = hosts.check_limit()
    assert [0.8 <= one / bits_per_second(rate) <= 1.05 for one in measured] == [True, True]


@needs_rights
def test_a_limit_that_does_not_bind_is_an_error():
    with EmulatedCluster(2, "50mbit") as hosts:
        netns.command("tc", "-n", hosts.namespace(1), "qdisc", "del", "dev", "eth0", "root")
        switch = f"{hosts.prefix}-switch"
        netns.command("tc", "-n", switch, "qdisc", "del", "dev", "port2", "root")
        with pytest.raises(netns.ClusterError, match=r"limit does not bind: host 1 sends \d+ Mbit"):
            hosts.check_limit(seconds=0.2, tries=1)


@needs_rights
def test_one_host_cannot_prove_a_limit():
    with (
        EmulatedCluster(1) as hosts,
        pytest.raises(netns.ClusterError, match=r"^check_limit: one host has nobody"),
    ):
        hosts.check_limit()


@needs_rights
def test_hosts_are_removed_after_an_exception():
    hosts = EmulatedCluster(2)
    with pytest.raises(ZeroDivisionError), hosts:
        len(netns.existing()[hosts.owner]) / 0
    assert hosts.owner not in netns.existing()


@needs_rights
def test_hosts_are_removed_when_making_them_fails(monkeypatch):
    monkeypatch.setattr(hosts, "BURST", ("nonsense",))
    emulated = EmulatedCluster(2)
    with pytest.raises(netns.ClusterError, match=r"tc .* failed"):
        emulated.__enter__()
    assert emulated.owner not in netns.existing()


@needs_rights
def test_processes_on_a_host_end_with_it():
    with EmulatedCluster(1) as hosts:
        sleeper = subprocess.Popen(hosts.host_command(1, ["sleep", "600"]))
        wait_until(lambda: netns.processes([hosts.namespace(1)]), "the process to be on its host")
    assert sleeper.wait(timeout=10) == -signal.SIGKILL


@needs_rights
@needs_mpirun
def test_a_rank_runs_on_each_host_over_the_wire():
    code = (
        "import os, socket, numpy; from mpi4py import MPI; world = MPI.COMM_WORLD;"
        "sent = numpy.ones(3 << 19, numpy.uint8); got = numpy.empty_like(sent);"
        "world.Alltoall(sent, got); assert got.all();"
        "words = [world.rank, world.size, socket.gethostname(), os.environ['FOO'],"
        "os.environ['GLOO_SOCKET_IFNAME']];"
        # In one piece, since the launcher mixes what ranks write.
        "os.write(1, (' '.join(map(str, words)) + '\\n').encode())"
    )
    with EmulatedCluster(3, "1gbit") as hosts:
        before = hosts.bytes_sent()
        done = hosts.run([sys.executable, "-c", code], {"FOO": "bar"}, timeout=60, capture=True)
        sent = [after - start for start, after in zip(before, hosts.bytes_sent(), strict=True)]
    assert done.returncode == 0, done.stdout
    for rank in range(3):
        assert f"{rank} 3 h{rank + 1} bar eth0" in done.stdout
    # Each rank sends 2**19 bytes to each of two others; through shared memory the interfaces would
    # not see them. Headers and MPI's own messages come on top.
    assert all(2**20 <= one <= 1.1 * 2**20 for one in sent), sent


@needs_rights
@needs_mpirun
def test_exit_status_is_the_programs_and_output_is_forwarded():
    run = command_line("run", "--hosts", "2", "--no-check", "--", "sh", "-c", "echo out; exit 7")
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 7
    assert output.count("out\n") >= 1
    assert names_of(run.pid) == []


@needs_rights
@needs_mpirun
def test_a_timeout_kills_every_rank():
    with EmulatedCluster(2) as hosts:
        with pytest.raises(subprocess.TimeoutExpired):
            hosts.run(["sleep", "601"], timeout=2)
        spaces = [hosts.namespace(1), hosts.namespace(2)]
        wait_until(lambda: not netns.processes(spaces), "the ranks to be gone")


@needs_rights
@needs_mpirun
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_clears_up(number):
    run = command_line("run", "--hosts", "2", "--no-check", "--", "sleep", "602")
    wait_until(lambda: len(netns.processes(names_of(run.pid))) >= 3, "the ranks to start")
    run.send_signal(number)
    output, _ = run.communicate(timeout=20)
    assert run.returncode == 128 + number, output
    assert names_of(run.pid) == []
    assert "Traceback" not in output


@needs_rights
@needs_mpirun
def test_what_a_killed_run_left_is_reclaimed():
    run = command_line("run", "--hosts", "2", "--no-check", "--", "sleep", "603")
    wait_until(lambda: len(netns.processes(names_of(run.pid))) >= 3, "the ranks to start")
    left = names_of(run.pid)
    folders = list(Path(tempfile.gettempdir()).glob(f"hvdsign-{run.pid}.*"))
    assert len(folders) == 1
    run.kill()
    run.wait(timeout=20)
    assert names_of(run.pid) == left
    with EmulatedCluster(1) as living:
        assert names_of(run.pid) == []
        assert not folders[0].exists()
        assert netns.existing()[living.owner][0] not in hosts.reclaim()
        assert len(netns.existing()[living.owner]) == 2


@needs_rights
@needs_mpirun
def test_hosts_that_stay_serve_many_runs(monkeypatch):
    monkeypatch.setattr(netns, "UP", f"up{os.getpid()}")
    monkeypatch.setattr(netns, "orphaned", lambda owner: False)
    assert hosts.main(["up", "--hosts", "2", "--no-check"]) == 0
    try:
        assert hosts.main(["up"]) == 2
        assert hosts.main(["run", "--", "true"]) == 0
        assert hosts.main(["run", "--", "false"]) == 1
        assert len(netns.existing()[netns.UP]) == 3
    finally:
        assert hosts.main(["down"]) == 0
    assert netns.UP not in netns.existing()
    assert hosts.main(["down"]) == 0


def test_a_program_is_asked_for(capsys):
    assert hosts.main(["run"]) == 2
    assert capsys.readouterr().err == "cluster: run: expected a program after --\n"
