"""Submitting to Slurm: scripts as text, and how jobs are watched, by programs that pretend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bench_results
import pytest

from benchmarks import submit
from benchmarks.jobs import script

REPO = Path(__file__).resolve().parent.parent
SUBMITTED = Path(__file__).with_name("submitted")
LINES = {
    "allreduce": (
        *("--nodes", "4", "--ranks-per-node", "8", "--time", "00:20:00", "--partition", "fast"),
        *("--sbatch", "exclusive", "--set", "MODULES=gcc openmpi", "--launcher", "mpirun"),
        *("--", "-b", "1K", "-e", "64M"),
    ),
    "train": (
        *("--nodes", "1", "--ranks-per-node", "4", "--gpus-per-node", "4", "--scaling", "strong"),
        *("--set", "MODEL=resnet18"),
    ),
    "accuracy": ("--", "--epochs", "9"),
    "job": (
        *("--sbatch", "job-name=mine", "--account", "us", "--cpus-per-rank", "6"),
        *("--", "train.py", "--name", "a b", "$HOME"),
    ),
}


@pytest.mark.parametrize("kind", LINES)
def test_the_script_of_a_command_line(kind):
    given = submit.parse([kind, *LINES[kind]])
    (job,) = submit.jobs(given, Path("/data/out"))
    base = (REPO / "slurm" / f"{kind}.sbatch").read_text()
    made = script.render(job, base, Path("/opt/hvd_sign"))
    assert made == (SUBMITTED / f"{kind}.txt").read_text()
    assert subprocess.run(["bash", "-n"], input=made, text=True, timeout=10).returncode == 0


def test_every_number_of_nodes_is_a_job_and_every_scaling_a_task():
    given = submit.parse(["train", "--nodes", "4,1,2"])
    made = submit.jobs(given, Path("/out"))
    assert [(job.title, job.nodes, job.tasks) for job in made] == [
        ("train-1-node", 1, (0, 1)),
        ("train-2-nodes", 2, (0, 1)),
        ("train-4-nodes", 4, (0, 1)),
    ]


def test_a_dry_run_prints_the_scripts_and_makes_nothing(tmp_path, capsys):
    line = ["job", "--nodes", "1,3", "--out", str(tmp_path), "--dry-run", "--", "train.py"]
    assert submit.main(line) == 0
    said = capsys.readouterr().out
    assert said.count("#!/bin/bash") == 2
    assert "#SBATCH --nodes=3\n" in said
    assert f"#SBATCH --output={tmp_path}/submit-job/%x-%j.out\n" in said
    assert f"source {REPO}/slurm/job.sbatch\n" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["job"], "job: expected -- and a script of yours"),
        (["train", "--ranks-per-node", "0"], "--ranks-per-node: expected 1 or more, got 0"),
        (["train", "--set", "MODEL"], "--set: expected NAME=VALUE, got 'MODEL'"),
        (["gather", "/nowhere"], "gather: /nowhere is not of a submission"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, line, sentence):
    assert submit.main([*line, "--out", str(tmp_path)]) == 2
    assert f"submit: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["train", "--nodes", "1,zero"], "expected numbers above 0, as in 1,2,4, got '1,zero'"),
        (["train", "--scaling", "fast"], "expected weak, strong or both, got 'fast'"),
        (["gather"], "gather, and nothing else, takes the directory of a submission"),
        (["train", "somewhere"], "gather, and nothing else, takes the directory of a submission"),
    ],
)
def test_command_lines_that_make_no_sense(capsys, line, sentence):
    with pytest.raises(SystemExit):
        submit.parse(line)
    assert sentence in capsys.readouterr().err


# Each job is in the queue for two looks, then over: what its tasks left is made here.
SBATCH = """#!{python}
import json, os, sys
from pathlib import Path
if "refuse" in Path(sys.argv[-1]).read_text():
    sys.exit("sbatch: error: invalid partition")
here = Path({folder!r})
with (here / "lines").open("a") as lines:
    print(*sys.argv[1:], file=lines)
number = len((here / "lines").read_text().splitlines())
(here / f"looks-{{number}}").write_text("2")
text = Path(sys.argv[-1]).read_text()
results = [line.split("=")[1] for line in text.splitlines() if line.startswith("export RESULTS")]
failing = (here / "fail").exists()
for task in range(2):
    made = Path(results[0]) / f"hvd-sign-train-{{number}}_{{task}}"
    (made / "result").mkdir(parents=True)
    (made / "job.log").write_text("a rank's last words\\n")
    (made / "result" / "result.json").write_text((here / f"{{number}}.json").read_text())
    if not (failing and task):
        (made / "status").write_text("1" if failing else "0")
print(number)
"""
SQUEUE = """#!{python}
import sys
from pathlib import Path
number = [word.split("=")[1] for word in sys.argv if word.startswith("--jobs=")][0]
file = Path({folder!r}) / f"looks-{{number}}"
left = int(file.read_text()) - 1
file.write_text(str(left))
if left < 0:
    sys.exit("slurm_load_jobs error: Invalid job id specified")
print("PENDING\\nRUNNING" if left else "RUNNING")
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A folder of programs that pretend to be Slurm's, and of what they write."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (folder / name).write_text(text.format(python=sys.executable, folder=str(folder)))
        (folder / name).chmod(0o755)
    for number, seconds in (("1", 1.0), ("2", 1.25)):
        made = bench_results.training(
            bench_results.trained("fp32", (seconds, 0.5, 0.9)), workers=int(number)
        )
        made["network"].update(mode="allocation", nodes=int(number), measured=None)
        (folder / f"{number}.json").write_text(json.dumps(made))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def made_by(out: Path) -> Path:
    (folder,) = out.iterdir()
    return folder


def test_jobs_are_submitted_watched_and_reported(slurm, tmp_path, capsys):
    out = tmp_path / "out"
    line = ["train", "--nodes", "1,2", "--serial", "--out", str(out), "--poll", "0.01"]
    assert submit.main(line) == 0
    folder = made_by(out)
    assert (slurm / "lines").read_text().splitlines() == [
        f"--parsable {folder}/train-1-node.sbatch",
        f"--parsable --dependency=afterany:1 {folder}/train-2-nodes.sbatch",
    ]
    said = capsys.readouterr().out
    assert "train-1-node: job 1" in said
    assert "over" in said
    assert "Weak scaling: a network of 9 weights" in said
    assert "80%" in said  # 128 samples/s of two workers, 80 of one
    assert (folder / "report" / "index.html").exists()


def test_failed_tasks_fail_the_submission_with_their_last_words(slurm, tmp_path, capsys):
    (slurm / "fail").touch()
    out = tmp_path / "out"
    assert submit.main(["train", "--nodes", "1", "--out", str(out), "--poll", "0.01"]) == 2
    said = capsys.readouterr().err
    folder = made_by(out)
    assert f"hvd-sign-train-1_0 failed (1); {folder}/hvd-sign-train-1_0/job.log" in said
    assert "hvd-sign-train-1_1 failed (no status: it was ended, or lost)" in said
    assert said.count("  a rank's last words") == 2


def test_what_is_left_in_the_queue_is_gathered_later(slurm, tmp_path, capsys):
    out = tmp_path / "out"
    assert submit.main(["train", "--nodes", "1,2", "--out", str(out), "--no-wait"]) == 0
    folder = made_by(out)
    assert f"python -m benchmarks.submit gather {folder}" in capsys.readouterr().out
    assert not (folder / "report").exists()
    assert submit.main(["gather", str(folder), "--poll", "0.01"]) == 0
    assert (folder / "report" / "index.html").exists()


def test_what_slurm_refuses_is_said(slurm, tmp_path, capsys):
    line = ["job", "--set", "WHAT=refuse", "--out", str(tmp_path / "out"), "--", "train.py"]
    assert submit.main(line) == 2
    assert "job-2-nodes.sbatch: sbatch: error: invalid partition" in capsys.readouterr().err


def test_without_slurm_one_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    line = ["job", "--out", str(tmp_path / "out"), "--", "train.py"]
    assert submit.main(line) == 2
    assert "sbatch cannot be started" in capsys.readouterr().err
