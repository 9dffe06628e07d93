"""The scripts of slurm/ on a real Slurm of four nodes, by every launcher. `make test-slurm`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import local_slurm
import pytest
from local_slurm import LocalSlurm

from benchmarks.reporting import results

REPO = Path(__file__).resolve().parent.parent
SCRIPTS = ("allreduce", "train", "job", "accuracy")
LAUNCHERS = ("srun", "mpirun", "horovodrun")
# Nodes share two cores and the loopback interface.
SETTINGS = {
    "CPU_BIND": "none",
    "INTERFACE": "lo",
    "TRANSPORT": "tcp",
    "OMP_NUM_THREADS": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "HVD_SIGN_ROOT": str(REPO),
}
TRAINING = {"MODEL": "cnn", "DATA": "digits", "METHODS": "fp32,vote"}
TRAINING_LINE = ("--limit", "64", "--test-limit", "16", "--epochs", "1")
TRAINING_LINE += ("--num-warmup-batches", "1", "--model-option", "width=32")
ACCURACY_LINE = ("--data", "digits", "--limit", "320", "--batch", "8", "--width", "32")
ACCURACY_LINE += ("--epochs", "3", "--look-every", "2")
LIMIT = 150.0  # seconds for one job
# A user's own script: each rank says who it is, and what three votes against one decide.
OWN = """
import os, torch
from pathlib import Path
import hvd_sign.torch as hvd
hvd.init()
mine = torch.tensor([1.0, -1.0, -1.0 if hvd.rank() else 1.0])
verdict = hvd.allreduce(mine, op=hvd.MajorityVote, name="own").tolist()
said = (hvd.size(), hvd.local_size(), hvd.cross_size(), verdict)
Path(os.environ["JOB_DIR"], f"rank-{hvd.rank()}").write_text(repr(said))
hvd.shutdown()
"""
BREAKS = """
import os
from mpi4py import MPI
if MPI.COMM_WORLD.rank == 1:
    os.write(2, b"rank 1 does not like it here\\n")
    os._exit(3)
MPI.COMM_WORLD.barrier()
"""


def why_skipped() -> str | None:
    if os.environ.get("HVD_SIGN_TEST_SLURM") != "1":
        return "run by make test-slurm"
    return local_slurm.why_unavailable()


pytestmark = pytest.mark.skipif(why_skipped() is not None, reason=str(why_skipped()))


@pytest.fixture(scope="module")
def slurm() -> Iterator[LocalSlurm]:
    with local_slurm.cluster() as running:
        yield running


class Ended:
    """A job that is over: its directories, and what sbatch's own output got."""

    def __init__(self, slurm: LocalSlurm, job: str, out: Path) -> None:
        self.codes = slurm.exit_codes(job)
        self.folders = sorted(path for path in out.iterdir() if path.is_dir())
        self.said = "".join(path.read_text() for path in sorted(out.glob("*.out")))

    @property
    def logs(self) -> str:
        return "\n".join(path.read_text() for one in self.folders for path in one.rglob("*.log"))

    def check(self) -> None:
        """Checks that all tasks did what they should, and left what they ran in."""
        assert self.codes == {"0:0"}, self.said + self.logs
        for folder in self.folders:
            assert (folder / "status").read_text() == "0\n", self.logs
            environment = (folder / "environment.txt").read_text()
            assert "SLURM_JOB_ID=" in environment
            assert re.search(r"(?m)^torch==", environment)


def submit(
    slurm: LocalSlurm, script: str, out: Path, *arguments: str, nodes: int = 2, **settings: str
) -> str:
    out.mkdir(parents=True, exist_ok=True)
    output = out / ("%x-%A_%a.out" if script == "train" else "%x-%j.out")
    line = ["sbatch", "--parsable", f"--nodes={nodes}", f"--output={output}"]
    line += [f"--ntasks-per-node={settings.pop('per_node', '1')}"]
    line += [str(REPO / "slurm" / f"{script}.sbatch"), *arguments]
    return slurm.run(*line, **SETTINGS, RESULTS=str(out), **settings).stdout.strip()


def run(slurm: LocalSlurm, script: str, out: Path, *arguments: str, **settings) -> Ended:
    job = submit(slurm, script, out, *arguments, **settings)
    slurm.wait(job, LIMIT)
    return Ended(slurm, job, out)


@pytest.mark.parametrize("script", SCRIPTS)
def test_slurm_accepts_the_script(slurm, script):
    path = REPO / "slurm" / f"{script}.sbatch"
    said = slurm.run("sbatch", "--test-only", str(path)).stderr
    assert "to start at" in said


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ones_own_script_votes(slurm, tmp_path, launcher):
    (tmp_path / "own.py").write_text(OWN)
    own = str(tmp_path / "own.py")
    ended = run(slurm, "job", tmp_path / "out", own, per_node="2", LAUNCHER=launcher)
    ended.check()
    (folder,) = ended.folders
    ranks = [(folder / f"rank-{rank}").read_text() for rank in range(4)]
    assert ranks == ["(4, 2, 2, [1.0, -1.0, -1.0])"] * 4


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failed_rank_fails_the_job_and_is_heard(slurm, tmp_path, launcher):
    (tmp_path / "breaks.py").write_text(BREAKS)
    broken = str(tmp_path / "breaks.py")
    ended = run(slurm, "job", tmp_path / "out", broken, LAUNCHER=launcher)
    assert ended.codes.isdisjoint({"0:0"})
    assert "rank 1 does not like it here" in ended.said
    (folder,) = ended.folders
    assert (folder / "status").read_text() != "0\n"


def test_torchrun_is_refused_with_a_reason(slurm, tmp_path):
    ended = run(slurm, "job", tmp_path, "own.py", LAUNCHER="torchrun")
    assert ended.codes == {"2:0"}
    assert "LAUNCHER=torchrun cannot serve: votes need ranks of MPI or Horovod" in ended.said


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_allreduce_sweep(slurm, tmp_path, launcher):
    line = ("-b", "64K", "-e", "128K", "-n", "2", "-w", "1", "--methods", "fp32,vote")
    ended = run(slurm, "allreduce", tmp_path, *line, LAUNCHER=launcher)
    ended.check()
    result = results.load(next(tmp_path.glob("*/*/result.json")))
    assert (result["network"]["mode"], result["network"]["launcher"]) == ("allocation", launcher)
    measured = [(row["size"], row["method"], row["wrong"]) for row in result["measured"]]
    assert measured == [
        (size, method, 0) for size in (65536, 131072) for method in ("fp32", "vote")
    ]


@pytest.mark.parametrize("launcher", LAUNCHERS[1:])
def test_the_training_benchmark(slurm, tmp_path, launcher):
    more = {"BATCH": "8", "GLOBAL_BATCH": "8", "LAUNCHER": launcher, **TRAINING}
    ended = run(slurm, "train", tmp_path, *TRAINING_LINE, **more)
    ended.check()
    found = [results.load(path) for path in sorted(tmp_path.glob("*/*/result.json"))]
    assert [one["setup"]["batch"] for one in found] == [8, 4]  # weak, strong
    for one in found:
        assert [method["replicas_equal"] for method in one["methods"]] == [True, True]


def test_submit_runs_trainings_on_more_and_more_nodes_and_reports(slurm, tmp_path):
    line = [sys.executable, "-m", "benchmarks.submit", "train", "--nodes", "1,2,4"]
    settings = {**TRAINING, "BATCH": "4", "GLOBAL_BATCH": "16"}
    line += [word for pair in settings.items() for word in ("--set", "=".join(pair))]
    line += ["--out", str(tmp_path), "--poll", "1", "--", *TRAINING_LINE]
    done = subprocess.run(
        line,
        cwd=REPO,
        env={**slurm.environment, **SETTINGS},
        capture_output=True,
        text=True,
        timeout=3 * LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Weak scaling" in done.stdout
    assert "Strong scaling" in done.stdout
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("*/*/result.json"))) == 6
    assert (folder / "report" / "index.html").exists()
    assert (folder / "report" / "efficiency-weak-1.png").exists()
    assert (folder / "report" / "efficiency-strong-1.png").exists()


def accuracy(out: Path) -> dict:
    (path,) = out.glob("*/accuracy.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def uninterrupted(slurm, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("uninterrupted")
    run(slurm, "accuracy", out, *ACCURACY_LINE).check()
    return accuracy(out)


def test_the_accuracy_run(uninterrupted):
    assert uninterrupted["replicas_equal"]
    assert (uninterrupted["method"], uninterrupted["ranks"]) == ("vote", 2)
    assert len(uninterrupted["accuracies"]) == 3
    assert uninterrupted["accuracies"][-1] > 0.3  # of ten digits


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_requeued_run_ends_where_an_uninterrupted_one_does(
    slurm, tmp_path, uninterrupted, launcher
):
    line = (*ACCURACY_LINE, "--step-delay", "0.1")
    job = submit(slurm, "accuracy", tmp_path, *line, LAUNCHER=launcher)
    folder = tmp_path / f"hvd-sign-accuracy-{job}"

    def log() -> str:
        path = folder / "job.log"
        return path.read_text() if path.exists() else ""

    slurm.wait_for(lambda: "epoch 1:" in log() or not slurm.states(job), LIMIT, "the first epoch")
    # As `--signal=B:USR1@120` does, but at once.
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_for(lambda: "requeued" in log() or not slurm.states(job), LIMIT, "its requeue")
    slurm.wait_for(lambda: "start 1" in log(), LIMIT, "its second start")
    slurm.wait(job, LIMIT)
    Ended(slurm, job, tmp_path).check()
    stopped = re.search(r"stopped after step (\d+) of 60", log())
    went_on = re.search(r"goes on after step (\d+)", log())
    assert stopped, log()
    assert went_on, log()
    assert stopped[1] == went_on[1]
    assert 20 <= int(stopped[1]) < 60
    assert accuracy(tmp_path) == uninterrupted
    assert len(list(folder.glob("checkpoint/*/manifest.json"))) == 1  # the last one's
