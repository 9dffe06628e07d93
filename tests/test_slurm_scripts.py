"""The job scripts without a Slurm: what they refuse, and the command lines of each launcher."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SLURM = Path(__file__).resolve().parent.parent / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))
JOB = {
    "HVD_SIGN_ROOT": str(SLURM.parent),
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "name",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_SUBMIT_DIR": str(SLURM.parent),
}
# Says its name and arguments, one a line.
ECHO = '#!/bin/bash\nprintf "%s\\n" "${0##*/}" "$@"\n'
SETTING = re.compile(r'(?m)^: "\$\{([A-Z_]+):=')


def bash(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = environment.pop("PATH", os.defpath)
    return subprocess.run(
        ["bash", str(script), *arguments],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_there_is_a_script_for_each_kind():
    assert [path.stem for path in SCRIPTS] == ["accuracy", "allreduce", "job", "train"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_without_a_job_one_is_told(script):
    done = bash(script, HVD_SIGN_ROOT=str(SLURM.parent))
    assert done.returncode == 2
    assert done.stderr == "slurm: no job: submit this script with sbatch\n"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"LAUNCHER": "torchrun"}, "LAUNCHER=torchrun cannot serve: votes need ranks of MPI"),
        ({"LAUNCHER": "ssh"}, "LAUNCHER: expected one of srun mpirun horovodrun, got 'ssh'"),
        ({"CPU_BIND": "core"}, "CPU_BIND: expected one of cores sockets none, got 'core'"),
        ({"TRANSPORT": "ib"}, "TRANSPORT: expected one of auto tcp ucx, got 'ib'"),
        ({"SLURM_NTASKS": "3"}, "3 tasks on 2 nodes: ask for --ntasks-per-node"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, setting, sentence):
    done = bash(SLURM / "job.sbatch", "own.py", **{**JOB, "RESULTS": str(tmp_path), **setting})
    assert done.returncode == 2
    assert done.stderr.startswith(f"slurm: {sentence}")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def programs(tmp_path) -> str:
    """A PATH on which launchers say how they were called."""
    for name in ("srun", "horovodrun", "apptainer"):
        (tmp_path / name).write_text(ECHO)
    says_version = 'if [[ $1 == --version ]]; then echo "mpirun (${MPI:-Open MPI}) 4.1"; exit; fi\n'
    (tmp_path / "mpirun").write_text(ECHO.replace("\n", f"\n{says_version}", 1))
    (tmp_path / "scontrol").write_text('#!/bin/bash\nprintf "n1\\nn2\\n"\n')
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    return f"{tmp_path}:{os.defpath}"


RANKS = {
    **{"LAUNCHER": "srun", "PMI": "pmix", "NODES": "2", "RANKS": "4", "CPU_BIND": "cores"},
    **{"CPUS_PER_RANK": "3", "GPUS_PER_NODE": "0", "CONTAINER": "", "INTERFACE": ""},
    **{"HVD_SIGN_ROOT": "/root of it", "JOB_DIR": "/out", "SLURM_JOB_NODELIST": "n[1-2]"},
}
SRUN = "srun --mpi=pmix --nodes=2 --ntasks=4 --cpus-per-task=3 --cpu-bind=cores"
SRUN += " --kill-on-bad-exit=1 --label"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, SRUN),
        (
            {"PMI": "pmi2", "CPU_BIND": "none"},
            SRUN.replace("pmix", "pmi2").replace("cores", "none"),
        ),
        (
            {"LAUNCHER": "mpirun"},
            "mpirun -np 4 --tag-output --map-by slot:PE=3 --bind-to core",
        ),
        ({"LAUNCHER": "mpirun", "CPU_BIND": "none"}, "mpirun -np 4 --tag-output --bind-to none"),
        (
            {"LAUNCHER": "mpirun", "CPU_BIND": "sockets"},
            "mpirun -np 4 --tag-output --map-by slot --bind-to socket",
        ),
    ],
)
def test_the_command_line_of_a_launcher(programs, settings, line):
    done = bash(SLURM / "ranks.sh", "python", "a b.py", PATH=programs, **{**RANKS, **settings})
    assert done.stdout.splitlines() == [*line.split(), "python", "a b.py"], done.stderr


def test_horovodrun_gets_the_jobs_hosts(programs):
    settings = {**RANKS, "LAUNCHER": "horovodrun", "CPU_BIND": "none", "INTERFACE": "ib0"}
    done = bash(SLURM / "ranks.sh", "python", "own.py", PATH=programs, **settings)
    assert done.stdout.splitlines() == [
        *("horovodrun", "--mpi", "-np", "4", "-H", "n1:2,n2:2", "--binding-args=--bind-to none"),
        *("--network-interfaces", "ib0", "python", "own.py"),
    ]


def test_in_a_container_its_own_python_runs(programs):
    more = {"CONTAINER": "image.sif", "CONTAINER_PYTHON": "python3.12", "GPUS_PER_NODE": "4"}
    line = ("/outside/.venv/bin/python3.11", "-m", "own")
    done = bash(SLURM / "ranks.sh", *line, PATH=programs, **{**RANKS, **more})
    said = done.stdout.splitlines()
    assert said[: len(SRUN.split())] == SRUN.split()
    inside = [
        *("apptainer", "exec", "--bind", "/root of it", "--bind", "/out", "--nv", "image.sif")
    ]
    assert said[len(SRUN.split()) :] == [*inside, "python3.12", "-m", "own"]


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun"])
def test_another_mpi_than_open_mpi_is_refused_where_its_options_differ(programs, launcher):
    settings = {**RANKS, "LAUNCHER": launcher, "MPI": "HYDRA"}
    done = bash(SLURM / "ranks.sh", "python", PATH=programs, **settings)
    assert done.returncode == 2
    assert "with MPICH or Intel MPI take LAUNCHER=srun PMI=pmi2" in done.stderr


def test_srun_stands_in_for_ssh(programs):
    line = "-o PasswordAuthentication=no -o StrictHostKeyChecking=no n2 -p 22 -o ConnectTimeout=9"
    done = bash(SLURM / "srun_as_ssh" / "ssh", *line.split(), "true", "a  b", PATH=programs)
    assert done.stdout.splitlines() == [
        *("srun", "--overlap", "--mpi=none", "--nodes=1", "--ntasks=1", "--nodelist=n2"),
        *("sh", "-c", "true a  b"),
    ]


def test_every_setting_is_in_the_readme():
    scripts = [SLURM / "common.sh", *SCRIPTS]
    settings = [name for path in scripts for name in SETTING.findall(path.read_text())]
    assert len(settings) > 20
    readme = (SLURM / "README.md").read_text()
    assert [name for name in settings if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_strict_and_name_no_cluster(script):
    text = script.read_text()
    assert "\nset -euo pipefail\n" in text
    assert not re.search(r"#SBATCH --(partition|account|qos|constraint|nodelist|mail)", text)
