"""`hvd-sign doctor` on set-ups that are really broken, and its checks one by one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import launch
import pytest

from benchmarks.emulation import hosts, netns
from hvd_sign.cli import main
from hvd_sign.core.launch import Placement
from hvd_sign.doctor import children, machine, networks, software
from hvd_sign.doctor.children import Child, ChildError
from hvd_sign.doctor.findings import FAILED, OK, SKIPPED, WARNING, Finding, Seen, look_at
from hvd_sign.doctor.report import as_json, as_table, lines_of

ALONE = Placement()
FOUR = Placement("Open MPI's mpirun", 4, 0, 0)
DOCTOR = [sys.executable, "-m", "hvd_sign.cli", "doctor", "--json"]
FRAMEWORKS = ["--skip", "PyTorch", "--skip", "TensorFlow"]
SOFTWARE = [*FRAMEWORKS, "--skip", "MPI library", "--skip", "engine"]
WITHOUT_MPI = [*FRAMEWORKS, "--skip", "MPI start"]


def doctor(tmp_path: Path, *command: str, **extra: str) -> tuple[int, dict[str, dict]]:
    """The exit status and the checks, by name."""
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env=launch.environment(extra),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    documents = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    assert len(documents) == 1, ended.stdout + ended.stderr
    checks = json.loads(documents[0])["checks"]
    found = {check["check"]: check for check in checks}
    assert len(found) == len(checks), checks
    assert json.loads(documents[0])["ok"] == (ended.returncode == 0)
    return ended.returncode, found


def states(found: dict[str, dict], state: str) -> set[str]:
    return {name for name, check in found.items() if check["state"] == state}


def package(folder: Path, name: str, **files: str) -> str:
    """Writes a package; the folder for PYTHONPATH."""
    (folder / name).mkdir(parents=True)
    for file, text in {"__init__": "", **files}.items():
        (folder / name / f"{file}.py").write_text(text)
    return str(folder)


def test_a_sound_set_up(tmp_path):
    status, found = doctor(tmp_path, *launch.mpirun(2), *DOCTOR, *FRAMEWORKS)
    assert (status, states(found, FAILED)) == (0, set()), found
    together = ("MPI start", "ranks", "reach", "nodes", "same software", "clocks", "vote", "link")
    assert {found[name]["state"] for name in (*together[:-1], "engine", "MPI library")} == {OK}
    assert found["link"]["state"] in (OK, WARNING)  # a busy machine is slow
    assert found["launcher"]["found"].endswith("rank 0 of 2 local rank 0")
    assert found["vote"]["found"] == "right, of 20000 coordinates on 2 ranks"
    assert found["nodes"]["found"].endswith(": ranks 0, 1")


def test_one_process_and_its_framework(tmp_path):
    status, found = doctor(tmp_path, *DOCTOR, "--skip", "PyTorch")
    assert (status, states(found, FAILED)) == (0, set()), found
    assert found["launcher"]["found"] == "none: one worker"
    assert (found["reach"]["state"], found["reach"]["found"]) == (SKIPPED, "one rank")
    if launch.has("tensorflow"):
        tensorflow = software.version("tensorflow", "tensorflow-cpu")
        assert found["TensorFlow"]["found"] == f"{tensorflow}, without CUDA"
        if launch.has("horovod"):
            assert found["Horovod, TensorFlow"]["found"] == "0.28.1, built with mpi, gloo"


OTHER_MPI = """
def Get_library_version():
    return "MPICH Version:      4.2.3\\nMPICH Release date: never\\n"
def Is_finalized():
    return False
def Is_initialized():
    raise RuntimeError("this MPI cannot start")
"""


def test_mpi4py_of_another_mpi(tmp_path):
    # A stub in the place of mpi4py, which says that it is MPICH's.
    rc = "rc = lambda **kept: None\nrc.initialize = rc.finalize = True"
    stub = package(tmp_path / "stub", "mpi4py", __init__=rc, MPI=OTHER_MPI)
    kind = {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}
    status, found = doctor(tmp_path, *DOCTOR, *FRAMEWORKS, PYTHONPATH=stub, **kind)
    assert status == 1
    assert states(found, FAILED) == {"MPI library", "engine", "MPI start"}
    expected = "mpi4py runs on MPICH 4.2.3, but Open MPI's mpirun started it"
    assert found["MPI library"]["found"] == expected
    assert found["engine"]["found"].endswith(
        "but mpi4py on MPICH 4.2.3; build both with the same MPI"
    )
    assert "this MPI cannot start" in found["MPI start"]["found"]
    assert all(found[name]["remedy"] for name in ("MPI library", "engine"))


def test_engine_of_another_version_and_too_few_files(tmp_path):
    # The real engine, of which one thing is changed: the version that is compiled in.
    sources = launch.REPO / "hvd_sign"
    shutil.copytree(sources, tmp_path / "hvd_sign", ignore=shutil.ignore_patterns("__pycache__"))
    compiled = list((tmp_path / "hvd_sign").glob("_engine*.so"))
    if not compiled:
        pytest.skip("the engine was not built")
    from hvd_sign import __version__

    whole = compiled[0].read_bytes()
    older = "".join("0" if part.isdecimal() else part for part in __version__)
    changed = whole.replace(f"\0{__version__}\0".encode(), f"\0{older}\0".encode())
    assert changed != whole
    compiled[0].write_bytes(changed)
    few = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh"]
    path = str(tmp_path)
    status, found = doctor(tmp_path, *few, *DOCTOR, *WITHOUT_MPI, PYTHONPATH=path)
    assert status == 1
    assert states(found, FAILED) == {"engine", "open files"}
    assert f"it is of version {older}, hvd_sign of {__version__}" in found["engine"]["found"]
    assert found["open files"]["found"] == "200 at most; 1 ranks may need 260"
    assert "raise it to 260 or more" in found["open files"]["remedy"]


STUB_HOROVOD = """
mpi_built = nccl_built = cuda_built = lambda: False
gloo_built = lambda: True
"""


@pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)
def test_horovod_without_mpi(tmp_path):
    # A stub in the place of a Horovod that was built with HOROVOD_WITHOUT_MPI=1.
    stub = package(tmp_path, "horovod", torch=STUB_HOROVOD)
    skipped = ["--skip", "TensorFlow", "--skip", "MPI start"]
    status, found = doctor(tmp_path, *DOCTOR, *skipped, PYTHONPATH=stub)
    assert status == 1
    assert states(found, FAILED) == {"Horovod, PyTorch"}
    expected = "0.28.1, built with gloo, without MPI, which votes go through"
    assert found["Horovod, PyTorch"]["found"] == expected
    assert "HOROVOD_WITH_MPI=1 pip install" in found["Horovod, PyTorch"]["remedy"]


def private_mounts() -> bool:
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return os.geteuid() == 0 and subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.skipif(not private_mounts(), reason="needs root and a mount namespace of its own")
@pytest.mark.parametrize(
    ("options", "state", "words"),
    [
        ("size=4m", FAILED, "4 of 4 MiB free"),
        ("size=64m", WARNING, "64 of 64 MiB free"),
        ("ro", FAILED, "cannot be written"),
    ],
)
def test_little_or_no_shared_memory(tmp_path, options, state, words):
    mount = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    code = (
        "import json; from hvd_sign.doctor.machine import shared_memory;"
        "print(json.dumps(shared_memory()))"
    )
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    seen = Seen(*json.loads(ended.stdout))
    assert seen.state == state
    assert words in seen.found
    assert "--shm-size" in seen.remedy


def test_no_shared_memory_at_all(tmp_path):
    seen = machine.shared_memory(tmp_path / "shm")
    assert (seen.state, seen.found) == (FAILED, f"{tmp_path}/shm is missing")


@pytest.mark.skipif("HVD_SIGN_TEST_SLURM" not in os.environ, reason="run by make test-slurm")
@pytest.mark.skipif(netns.why_unavailable() is not None, reason=netns.why_unavailable() or "")
@pytest.mark.skipif(hosts.why_no_mpirun() is not None, reason=hosts.why_no_mpirun() or "")
def test_a_rank_whose_interface_is_down(tmp_path):
    # A second network, by which votes are to go; the second host is not on it.
    with hosts.EmulatedCluster(2, None) as cluster:
        for host in (1, 2):
            name = cluster.namespace(host)
            pair = ("link", "add", "eth1", "type", "veth", "peer", "name", "outside")
            netns.command("ip", "-n", name, *pair)
            netns.command("ip", "-n", name, "addr", "add", f"10.78.0.{host}/24", "dev", "eth1")
            netns.command("ip", "-n", name, "link", "set", "outside", "up")
            netns.command("ip", "-n", name, "link", "set", "eth1", "up" if host == 1 else "down")
        # Each rank writes to a file, for mpirun loses words of ranks that it ends.
        write = f'exec "$@" > {tmp_path}/$OMPI_COMM_WORLD_RANK 2>&1'
        program = ["sh", "-c", write, "sh", *DOCTOR, *SOFTWARE, "--timeout", "2"]
        line = cluster.mpirun_command(program)
        line[line.index("btl_tcp_if_include") + 1] = "eth1"
        line[line.index("-np") : line.index("-np")] = ["--mca", "odls_base_sigkill_timeout", "6"]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode != 0
    assert {"0", "1"} <= {file.name for file in tmp_path.iterdir()}, ended.stdout + ended.stderr
    first, second = ((tmp_path / name).read_text() for name in "01")
    variable = "OMPI_MCA_btl_tcp_if_include"
    down = f"rank 1 on h2: interfaces: {variable}: eth1 has no address or is down; up: eth0"
    assert f"hvd-sign doctor: {down}" in second
    document = json.loads(first)
    assert (document["ok"], document["rank"], document["size"]) == (False, 0, 2)
    failed = [check for check in document["checks"] if check["state"] == FAILED]
    assert failed[0]["check"] in ("MPI start", "reach")
    assert f"{variable}=NAME" in failed[0]["remedy"]


def test_interfaces_that_are_named(monkeypatch):
    up = [("lo", "127.0.0.1"), ("eth0", "10.0.0.1"), ("docker0", "172.17.0.1"), ("eth1", None)]
    monkeypatch.setattr(networks, "addresses", lambda: iter(up))
    monkeypatch.setattr(networks, "_all_names", lambda: [name for name, _ in up])

    def seen(place: Placement = FOUR, **environment: str) -> Seen:
        return networks.interfaces(environment, place)

    for variable in networks.NAMES:
        absent = seen(**{variable: "eth0,ib0"})
        assert absent.state == FAILED
        assert absent.found.startswith(f"{variable}: ib0 is not there; up: eth0 10.0.0.1")
        assert variable in absent.remedy
        assert seen(**{variable: "eth1"}).found.startswith(f"{variable}: eth1 has no address")
        assert seen(**{variable: "10.0.0.0/8"}).state == OK
        assert seen(**{variable: "eth0"}) == (OK, "eth0 10.0.0.1, docker0 172.17.0.1", "")
    assert seen(ALONE).state == OK
    assert seen().state == WARNING
    assert "docker0 may lead to no other machine" in seen().found
    assert "OMPI_MCA_btl_tcp_if_include=" in seen().remedy


def test_real_interfaces():
    assert dict(networks.addresses())["lo"] == "127.0.0.1"
    seen = networks.interfaces({"GLOO_SOCKET_IFNAME": "none0"}, ALONE)
    assert (seen.state, seen.found[:35]) == (FAILED, "GLOO_SOCKET_IFNAME: none0 is not th")


def test_launchers():
    assert machine.launcher({}, FOUR)[:2] == (OK, "Open MPI's mpirun: rank 0 of 4 local rank 0")
    assert machine.launcher({}, ALONE)[:2] == (OK, "none: one worker")
    lone = machine.launcher({"SLURM_NTASKS": "4"}, ALONE)
    assert (lone.state, "srun --mpi=pmix" in lone.remedy) == (WARNING, True)
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}
    refused = machine.launcher(torchrun, Placement("torchrun", 2, 0, 0))
    assert (refused.state, refused.remedy[:28]) == (FAILED, "start them by mpirun -np 2 p")


GPU = {"built": "12.8", "seen": 2, "nccl": "2.27.3"}
BLIND = {"built": None, "seen": 0, "nccl": None}
BUILT = {"mpi": True, "gloo": True, "nccl": False, "cuda": True}


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """A stub in the place of nvidia-smi."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf 'GPU 0: a\\nGPU 1: b\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_gpus_that_nobody_uses(two_gpus):
    blind = software.gpus({}, {"torch": {"gpus": BLIND}}, ["torch"])
    assert blind.state == WARNING
    assert blind.found == "2 here, PyTorch sees 0: PyTorch uses none"
    assert blind.remedy == "install a PyTorch built with CUDA"
    old_driver = software.gpus({}, {"torch": {"gpus": {**GPU, "seen": 0}}}, ["torch"])
    assert "CUDA 12.8 needs a newer driver" in old_driver.remedy
    hidden = software.gpus({"CUDA_VISIBLE_DEVICES": ""}, {"torch": {"gpus": BLIND}}, ["torch"])
    assert hidden.state == OK
    seeing = software.gpus({}, {"torch": {"gpus": GPU}}, ["torch"])
    assert seeing[:2] == (OK, "2 here, PyTorch sees 2")


def test_horovods(monkeypatch):
    monkeypatch.setattr(software, "version", lambda *names: "0.28.1")
    mine = {"mpi4py": {"loaded": ["/opt/a/libmpi.so.40"]}}

    def seen(gpus: dict, **horovod: object) -> Seen:
        return software.horovod("torch", {**mine, "torch": {"gpus": gpus, "horovod": horovod}})

    same, other = ["/opt/a/libmpi.so.40"], ["/usr/lib/libmpi.so.12"]
    assert seen(BLIND, built=BUILT, loaded=same)[:2] == (OK, "0.28.1, built with mpi, gloo, cuda")
    two = seen(BLIND, built=BUILT, loaded=other)
    assert two.state == FAILED
    assert two.found.endswith("loads /usr/lib/libmpi.so.12, but mpi4py /opt/a/libmpi.so.40")
    slow = seen(GPU, built=BUILT, loaded=same)
    assert (slow.state, slow.remedy[:26]) == (WARNING, "HOROVOD_GPU_OPERATIONS=NCC")
    broken = seen(BLIND, error="ImportError: no symbol")
    assert (broken.state, "no symbol" in broken.found) == (WARNING, True)
    monkeypatch.setattr(software, "version", lambda *names: None)
    assert seen(BLIND, built=BUILT, loaded=same).state == SKIPPED


def test_a_check_that_raises_becomes_a_line():
    def falls() -> Seen:
        raise OSError(5, "the disk\nis gone")

    finding = look_at("disk", falls)
    assert finding == Finding("disk", FAILED, "OSError: [Errno 5] the disk is gone")
    assert look_at("disk", falls, ["disk"]).state == SKIPPED


def test_processes_that_die_or_hang(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    programs = {
        "dies": "import os, sys\nsys.stderr.write('no such\\nthing'); sys.exit(3)",
        "aborts": "import os\nos.abort()",
        "hangs": "import sys, time\nsys.stderr.write('waiting'); sys.stderr.flush()\n"
        "print('{\"within\": 0.5}', flush=True)\ntime.sleep(60)",
        "answers": "import sys\nprint(sys.stdin.read())",
    }
    for name, text in programs.items():
        (tmp_path / f"{name}.py").write_text(text)

    def said(name: str) -> str:
        with pytest.raises(ChildError) as raised:
            Child(name).answer(60)
        return str(raised.value)

    assert said("dies") == "it ended with status 3; it said: no such thing"
    assert said("aborts").startswith("it was ended by SIGABRT")
    assert said("hangs") == f"{children.SILENT}; it said: waiting"
    child = Child("answers")
    child.tell([1, {"a": 2}])
    assert child.answer(60) == [1, {"a": 2}]


WELL = Finding("cores", OK, "2")
BAD = Finding("cores", FAILED, "none", "buy some")
ODD = Finding("clocks", WARNING, "1000.0 ms apart")


def test_reports_name_ranks():
    others = {
        1: {"host": "b", "findings": [BAD.as_dict(), ODD.as_dict()]},
        2: {"host": "c", "findings": [BAD.as_dict(), Finding("kernels", OK, "neon").as_dict()]},
    }
    lines = lines_of(0, [WELL, ODD], others)
    assert lines == [(WELL, [0]), (BAD, [1, 2]), (ODD, [0, 1])]
    assert as_table(lines, 0, 3, "a").splitlines()[1:] == [
        "ok       cores  2",
        "failed   cores  ranks 1, 2: none",
        "                -> buy some",
        "warning  clocks ranks 0, 1: 1000.0 ms apart",
        "1 failed, 1 warning, 1 ok, 0 skipped",
    ]
    document = json.loads(as_json(lines, 0, 3, "a"))
    assert (document["ok"], document["size"], document["host"]) == (False, 3, "a")
    assert document["checks"][1] == {**BAD.as_dict(), "ranks": [1, 2]}
    assert json.loads(as_json(lines_of(0, [WELL, ODD], {}), 0, 1, "a"))["ok"]


def test_arguments(capsys):
    for wrong in (["--skip", "weather"], ["--skip", "reach"], ["--timeout", "0"]):
        with pytest.raises(SystemExit) as refused:
            main(["doctor", *wrong])
        assert refused.value.code == 2
        assert wrong[0] in capsys.readouterr().err
