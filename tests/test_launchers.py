"""N processes that each think they are alone: found by what their launcher told them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import launch
import pytest

from hvd_sign.core.launch import LAUNCHERS, check_not_a_copy

VARIABLES = {
    "SLURM_NTASKS",
    "HOROVOD_ELASTIC",
    *(name for launcher in LAUNCHERS for name in (launcher.size, launcher.rank, launcher.mark)),
} - {""}

SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
INTERACTIVE = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"}


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
        (TORCHRUN, "WORLD_SIZE=2: torchrun started"),
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
        {"WORLD_SIZE": "8"},
        # Elastic jobs end with fewer processes than they began.
        {"HOROVOD_SIZE": "3", "HOROVOD_ELASTIC": "1"},
        {"SLURM_STEP_NUM_TASKS": "", "SLURM_NTASKS": "many", "HOROVOD_SIZE": "-1"},
    ],
)
def test_who_is_alone_by_right_is_left_alone(started, caplog, variables):
    started(variables)
    check_not_a_copy(1, "MPI")
    assert caplog.text == ""


@pytest.mark.parametrize("variables", [BATCH, INTERACTIVE], ids=["batch script", "salloc's shell"])
def test_a_lone_process_in_an_allocation_for_several_is_warned(started, caplog, variables):
    started(variables)
    with caplog.at_level(logging.WARNING, "hvd_sign"):
        check_not_a_copy(1, "MPI")
    assert "SLURM_NTASKS=4, but this process runs alone" in caplog.text
    caplog.clear()
    check_not_a_copy(4, "MPI")
    assert caplog.text == ""


NUMPY = "import numpy, hvd_sign; print(hvd_sign.allreduce(numpy.ones(3, 'float32')))"
TORCH = "import hvd_sign.torch as hvd; hvd.init(); print(hvd.size())"
TENSORFLOW = "import hvd_sign.tensorflow as hvd; hvd.init(); print(hvd.size())"


@pytest.mark.parametrize(
    ("code", "runtime", "needs", "who"),
    [
        (NUMPY, "auto", "mpi4py", "MPI"),
        (TORCH, "mpi", "torch", "MPI"),
        (TORCH, "horovod", "horovod", "Horovod"),
        (TENSORFLOW, "mpi", "tensorflow", "MPI"),
        (TENSORFLOW, "horovod", "horovod", "Horovod"),
    ],
)
def test_programs_that_srun_started_without_mpi(tmp_path, code, runtime, needs, who):
    if not launch.has(needs):
        pytest.skip(f"needs {needs}")
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=launch.environment({**SRUN, "HVD_SIGN_RUNTIME": runtime}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert f"srun started several processes, but {who} sees each as rank 0 of 1" in ended.stderr


def test_a_vote_with_oneself_is_no_copy(tmp_path):
    code = NUMPY.replace("'float32')", "'float32'), comm=MPI.COMM_SELF")
    ended = subprocess.run(
        [sys.executable, "-c", f"from mpi4py import MPI; {code}"],
        cwd=tmp_path,
        env=launch.environment(SRUN),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == "[1. 1. 1.]\n", ended.stderr
