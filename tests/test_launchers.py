"""N processes that each think they are alone: found by what their launcher told them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import launch
import pytest

from hvd_sign.core.launch import LAUNCHERS, check_launcher, check_not_a_copy, placement

VARIABLES = {
    "SLURM_NTASKS",
    "HOROVOD_ELASTIC",
    *(name for launcher in LAUNCHERS for name in (*launcher[1:4], *launcher.marks)),
} - {""}

SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
INTERACTIVE = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
DISTRIBUTED = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "h1"}
TORCHRUN = {**DISTRIBUTED, "TORCHELASTIC_RUN_ID": "none"}
# What they leave where they were tried: Open MPI 4.1.4 and 5.0.11, MPICH 5.0.2, Slurm 22.05.8.
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_RANK": "3",
}
HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}
STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
GLOO = {"HOROVOD_SIZE": "4", "HOROVOD_RANK": "3", "HOROVOD_LOCAL_RANK": "1"}
# By which mpirun and mpiexec start their daemons, one a node.
DAEMON = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.fixture
def started(monkeypatch):
    """started(variables): this process has these of the launchers' variables, and no others."""

    def start(variables: dict[str, str]) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (SRUN, "SLURM_STEP_NUM_TASKS=4: srun started several processes"),
        ({**SRUN, "PMIX_RANK": "0"}, "SLURM_STEP_NUM_TASKS=4: srun started"),
        ({**SRUN, "PMIX_RANK": "3"}, "PMIX_RANK=3: a PMIx launcher started"),
        ({**SRUN, "PMI_SIZE": "4"}, "PMI_SIZE=4: MPICH's mpiexec or srun --mpi=pmi2 started"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: Open MPI's mpirun started"),
        ({"MPI_LOCALNRANKS": "2"}, "MPI_LOCALNRANKS=2: MPICH's mpiexec started"),
        ({"HOROVOD_SIZE": "2"}, "HOROVOD_SIZE=2: horovodrun started"),
        (DISTRIBUTED, "WORLD_SIZE=2: a launcher of torch.distributed started"),
    ],
)
def test_copies_are_refused(started, variables, sentence):
    started(variables)
    with pytest.raises(RuntimeError, match=re.escape(sentence)) as refused:
        check_not_a_copy(1, "MPI")
    said = str(refused.value)
    variable = sentence.partition("=")[0]
    assert "but MPI sees each as rank 0 of 1" in said
    assert "srun --mpi=pmix (--mpi=pmi2 where that MPI is MPICH)" in said
    assert said.endswith(f"for a process that is meant to be alone, unset {variable}")
    check_not_a_copy(2, "MPI")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"PMIX_RANK": "0"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "PMI_SIZE": "1"},
        # mpirun starts its daemons, one a node, by srun.
        {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "4"},
        {"WORLD_SIZE": "8", "MASTER_ADDR": "h1"},
        {**DISTRIBUTED, "OMPI_COMM_WORLD_SIZE": "1"},
        {**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"},
        # Elastic jobs end with fewer processes than they began.
        {"HOROVOD_SIZE": "3", "HOROVOD_ELASTIC": "1"},
        {"SLURM_STEP_NUM_TASKS": "", "SLURM_NTASKS": "many", "HOROVOD_SIZE": "-1"},
    ],
)
def test_who_is_alone_by_right_is_left_alone(started, caplog, variables):
    started(variables)
    check_not_a_copy(1, "MPI")
    assert caplog.text == ""


def test_torchrun_is_refused_whatever_mpi_sees(started):
    # Under srun, MPI takes all processes of torchrun on a node for one rank of several.
    started({**TORCHRUN, **SRUN})
    for refuses in (check_launcher, lambda: check_not_a_copy(1, "MPI")):
        with pytest.raises(RuntimeError, match="torchrun started several") as caught:
            refuses()
        said = str(caught.value)
        assert said.startswith("WORLD_SIZE=2: torchrun started several processes, but votes")
        assert "votes do not travel over torch.distributed; start them by mpirun -np 2" in said
        assert said.endswith("for a process that is meant to be alone, unset WORLD_SIZE")
    started({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"})
    check_launcher()


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        (OPEN_MPI, "Open MPI's mpirun"),
        ({**OPEN_MPI, **DAEMON}, "Open MPI's mpirun"),
        (HYDRA, "MPICH's mpiexec or srun --mpi=pmi2"),
        ({**HYDRA, **DAEMON}, "MPICH's mpiexec or srun --mpi=pmi2"),
        ({**STEP, "PMI_SIZE": "4", "PMI_RANK": "3"}, "MPICH's mpiexec or srun --mpi=pmi2"),
        ({**STEP, "PMIX_RANK": "3"}, "a PMIx launcher"),
        (STEP, "srun"),
        (GLOO, "horovodrun"),
        ({**GLOO, **BATCH}, "horovodrun"),
        ({**TORCHRUN, "WORLD_SIZE": "4", "RANK": "3", **STEP}, "torchrun"),
        ({**DISTRIBUTED, "WORLD_SIZE": "4", "RANK": "3"}, "a launcher of torch.distributed"),
    ],
)
def test_places_that_launchers_tell(variables, launcher):
    assert placement(variables) == (launcher, 4, 3, 1)


def test_places_that_nobody_tells():
    assert placement({}) == (None, None, None, None)
    assert placement(BATCH) == (None, None, None, None)
    assert placement({"WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "first"}) == (None,) * 4
    assert placement({"PMIX_RANK": "3"}) == ("a PMIx launcher", None, 3, None)


@pytest.mark.parametrize("variables", [BATCH, INTERACTIVE], ids=["batch script", "salloc's shell"])
def test_a_lone_process_in_an_allocation_for_several_is_warned(started, caplog, variables):
    started(variables)
    with caplog.at_level(logging.WARNING, "hvd_sign"):
        check_not_a_copy(1, "MPI")
    assert "SLURM_NTASKS=4, but this process runs alone" in caplog.text
    caplog.clear()
    check_not_a_copy(4, "MPI")
    assert caplog.text == ""


NUMPY = "import numpy, hvd_sign\ndef start(): hvd_sign.allreduce(numpy.ones(3, 'float32'))"
TORCH = "import hvd_sign.torch as hvd; start = hvd.init"
TENSORFLOW = "import hvd_sign.tensorflow as hvd; start = hvd.init"
# Started by torchrun, which is refused before MPI starts; then, in its place, by srun.
STARTS = f"""
import os
for variables in ({TORCHRUN}, {SRUN}):
    for name in {sorted(VARIABLES)}:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        start()
    except RuntimeError as error:
        print(error)
"""


def run(tmp_path, command: list[str], code: str, **extra: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "program.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, *command, str(script)],
        cwd=tmp_path,
        env=launch.environment(extra),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("code", "runtime", "needs", "who"),
    [
        (NUMPY, "auto", "mpi4py", "MPI"),
        (TORCH, "mpi", "torch", "MPI"),
        (TORCH, "horovod", "horovod", "Horovod"),
        (TENSORFLOW, "mpi", "tensorflow", "MPI"),
        (TENSORFLOW, "horovod", "horovod", "Horovod"),
    ],
    ids=("numpy", "torch, mpi", "torch, horovod", "tensorflow, mpi", "tensorflow, horovod"),
)
def test_programs_whose_launcher_started_no_mpi(tmp_path, code, runtime, needs, who):
    if not launch.has(needs):
        pytest.skip(f"needs {needs}")
    ended = run(tmp_path, [], f"{code}\n{STARTS}", HVD_SIGN_RUNTIME=runtime)
    by_torchrun, by_srun = ended.stdout.splitlines()
    assert by_torchrun.startswith("WORLD_SIZE=2: torchrun started several processes, but votes")
    assert f"srun started several processes, but {who} sees each as rank 0 of 1" in by_srun


@pytest.mark.skipif(not launch.has("torch"), reason="needs PyTorch")
def test_ranks_of_torchrun(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = run(tmp_path, torchrun, f"{NUMPY}\nstart()")
    assert ended.returncode == 1
    assert "RuntimeError: WORLD_SIZE=2: torchrun started several processes, but" in ended.stderr


def test_a_vote_with_oneself_is_no_copy(tmp_path):
    code = (
        "import numpy, hvd_sign\nfrom mpi4py import MPI\n"
        "print(hvd_sign.allreduce(numpy.ones(3, 'float32'), comm=MPI.COMM_SELF))"
    )
    ended = run(tmp_path, [], code, **SRUN)
    assert ended.stdout == "[1. 1. 1.]\n", ended.stderr
