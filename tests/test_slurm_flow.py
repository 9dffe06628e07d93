"""What the job scripts do inside a job, with programs in place of Slurm and Python that pretend."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_slurm_scripts import JOB, SLURM

# Says how it was called, but for the questions that every job asks.
PYTHON = """#!/bin/bash
case $1 in --version | -c) exit ;; esac
env | grep -E '^(HVD_SIGN_BENCH|OMPI_MCA|NCCL|GLOO|SLURM_EXPORT|OMP_NUM)' | sort
printf '%s\\n' "$@"
exit "${PYTHON_STATUS:-0}"
"""
# One rank of accuracy.py's: it ends when told, or is done when asked to be.
SRUN = """#!/bin/bash
folder=$(printf '%s\\n' "$@" | grep -A1 -x -e --folder | tail -n 1)
echo "ranks: $*"
if [[ -z $folder ]]; then exit; fi
until [[ -e $folder/stop ]]; do
    if [[ -n ${DONE:-} ]]; then echo '{}' >"$folder/accuracy.json"; exit; fi
    if [[ -n ${BREAKS:-} ]]; then exit 9; fi
    sleep 0.05
done
sleep 0.2
echo saved
"""


@pytest.fixture
def job(tmp_path) -> dict[str, str]:
    """The environment of a job whose Python, srun and scontrol are ours."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/scontrol"\n')
    (programs / "python").write_text(PYTHON)
    (programs / "srun").write_text(SRUN)
    for program in programs.iterdir():
        program.chmod(0o755)
    return {
        **JOB,
        "PATH": os.defpath,
        "VENV": str(tmp_path / "venv"),
        "RESULTS": str(tmp_path / "results"),
    }


def run(script: str, *arguments: str, job: dict[str, str], **more: str):
    """Runs a script to its end: status, what it said, its log, and its directory."""
    line = ["bash", str(SLURM / f"{script}.sbatch"), *arguments]
    done = subprocess.run(
        line, env={**job, **more}, capture_output=True, text=True, timeout=30, check=False
    )
    (folder,) = Path(job["RESULTS"]).iterdir()
    return done, (folder / "job.log").read_text(), folder


def test_the_allreduce_benchmark_is_run_on_all_ranks(job):
    done, log, folder = run("allreduce", "-b", "1M", job=job, INTERFACE="eth0,eth1")
    assert done.returncode == 0, done.stderr + log
    assert folder.name == "name-7"
    assert (folder / "status").read_text() == "0\n"
    line = ("-m", "benchmarks.allreduce", "--network", "allocation", "--workers", "4", "--out")
    assert log.splitlines()[-10:] == [*line, str(folder), "-b", "1M"]
    assert f"HVD_SIGN_BENCH_LAUNCH={SLURM}/ranks.sh\n" in log
    assert "HVD_SIGN_BENCH_NODES=2\n" in log
    assert "HVD_SIGN_BENCH_LAUNCHER=srun\n" in log
    assert "HVD_SIGN_BENCH_INTERFACE=eth0\n" in log
    assert "OMPI_MCA_btl_tcp_if_include=eth0,eth1\n" in log
    assert "GLOO_SOCKET_IFNAME=eth0\n" in log
    assert "SLURM_EXPORT_ENV=ALL\n" in log
    assert "OMPI_MCA_pml" not in log


@pytest.mark.parametrize(
    ("task", "more", "batch", "device"),
    [
        ("0", {}, "32", "cpu"),
        ("1", {}, "64", "cpu"),
        ("0", {"BATCH": "5", "GPUS_PER_NODE": "2"}, "5", "cuda"),
        ("1", {"GLOBAL_BATCH": "20", "SLURM_GPUS_ON_NODE": "2"}, "5", "cuda"),
    ],
)
def test_weak_scaling_keeps_a_workers_batch_and_strong_scaling_that_of_all(
    job, task, more, batch, device
):
    array = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": task}
    done, log, folder = run("train", "--epochs", "1", job=job, **array, **more)
    assert done.returncode == 0, done.stderr + log
    assert folder.name == f"name-9_{task}"
    wanted = ("--model", "resnet50", "--data", "synthetic", "--methods", "fp32,fp16,vote,local")
    end = [*wanted, "--batch", batch, "--device", device, "--epochs", "1"]
    assert log.splitlines()[-len(end) :] == end


def test_a_batch_of_all_workers_that_cannot_be_shared_out(job):
    array = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1"}
    done, _, folder = run("train", job=job, **array, GLOBAL_BATCH="6")
    assert done.returncode == 2
    assert "slurm: GLOBAL_BATCH=6 is no multiple of 4 workers" in done.stdout
    assert (folder / "status").read_text() == "2\n"


@pytest.mark.parametrize(
    ("transport", "pml"),
    [("tcp", "OMPI_MCA_pml=ob1\n"), ("ucx", "OMPI_MCA_pml=ucx\n")],
)
def test_only_a_setting_forces_a_transport(job, transport, pml):
    _, log, _ = run("allreduce", job=job, TRANSPORT=transport)
    assert pml in log


def test_what_fails_is_heard_with_the_end_of_the_log(job):
    done, _, folder = run("allreduce", *"abcdef", job=job, PYTHON_STATUS="3", TAIL_LINES="2")
    assert done.returncode == 3
    assert done.stdout.splitlines()[1:] == [
        f"name, job 7, failed with status 3; {folder}/job.log ends:",
        "e",
        "f",
    ]
    assert (folder / "status").read_text() == "3\n"


def test_the_environment_is_kept_without_secrets(job):
    _, _, folder = run("allreduce", job=job, AWS_SECRET="hush", UCX_NET_DEVICES="mlx5_0:1")
    kept = (folder / "environment.txt").read_text()
    assert "SLURM_JOB_ID=7\n" in kept
    assert "UCX_NET_DEVICES=mlx5_0:1\n" in kept
    assert "hush" not in kept


def test_modules_conda_and_a_file_of_ones_own_are_loaded_in_this_order(job, tmp_path):
    said = tmp_path / "said"
    own = tmp_path / "own.sh"
    functions = f'module() {{ echo "module $*" >>"{said}"; }}\n'
    functions += f'conda() {{ echo "conda $*" >>"{said}"; }}\nexport -f module conda\n'
    own.write_text(f'echo "own ${{UNSET_HERE}}" >>"{said}"\n')
    (tmp_path / "begin").write_text(functions)
    settings = {"MODULES": "gcc/12 openmpi", "CONDA_ENV": "votes", "SETUP": str(own), "VENV": ""}
    path = f"{tmp_path}/venv/bin:{os.defpath}"
    more = {**settings, "PATH": path, "BASH_ENV": str(tmp_path / "begin")}
    done, log, _ = run("allreduce", job=job, **more)
    assert done.returncode == 0, done.stdout + log
    assert said.read_text().splitlines() == [
        *("module load gcc/12", "module load openmpi", "conda shell.bash hook"),
        *("conda activate votes", "own "),
    ]


def test_ones_own_script_gets_its_arguments(job):
    done, log, _ = run("job", "train.py", "a b", job=job)
    assert done.returncode == 0, log
    assert log.splitlines()[-1].endswith("--label python train.py a b")


def test_a_job_without_a_script_of_ones_own(job):
    done, log, _ = run("job", job=job)
    assert done.returncode == 2
    assert "slurm: expected a script" in log


def start_accuracy(job: dict[str, str], **more: str) -> tuple[subprocess.Popen, Path]:
    script = str(SLURM / "accuracy.sbatch")
    process = subprocess.Popen(["bash", script], env={**job, **more}, start_new_session=True)
    folder = Path(job["RESULTS"], "name-7")
    end = time.monotonic() + 20
    while not (folder / "job.log").exists() or "ranks:" not in (folder / "job.log").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    return process, folder


@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_stops_the_ranks_and_requeues_the_job(job, tmp_path, times):
    process, folder = start_accuracy(job)
    try:
        for _ in range(times):
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.05)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
    log = (folder / "job.log").read_text()
    assert "saved" in log  # it waited for the ranks
    assert log.splitlines()[-1].endswith(": requeued")
    assert (tmp_path / "scontrol").read_text().splitlines()[-1] == "requeue 7"
    assert not (folder / "status").exists()


def test_a_run_that_is_done_is_not_requeued(job, tmp_path):
    done, log, folder = run("accuracy", "--epochs", "3", job=job, DONE="1", METHOD="fp16")
    assert done.returncode == 0
    line = f"python -m slurm.accuracy --method fp16 --folder {folder} --epochs 3"
    assert log.splitlines()[-1].endswith(line)
    assert "requeue" not in (tmp_path / "scontrol").read_text()
    assert (folder / "status").read_text() == "0\n"


def test_a_run_that_fails_is_not_requeued(job, tmp_path):
    done, _, folder = run("accuracy", job=job, BREAKS="1")
    assert done.returncode == 9
    assert "requeue" not in (tmp_path / "scontrol").read_text()
    assert (folder / "status").read_text() == "9\n"


def test_a_run_is_not_requeued_for_ever(job, tmp_path):
    process, folder = start_accuracy(job, SLURM_RESTART_COUNT="2", MAX_RESTARTS="2")
    try:
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=20) == 2
    finally:
        process.kill()
    assert "requeued 2 times and not done: see MAX_RESTARTS" in (folder / "job.log").read_text()
    assert "requeue" not in (tmp_path / "scontrol").read_text()
