"""The benchmarks as commands: bad input, ranks that fail or fall silent, and tiny real runs."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from unittest import mock

import launch as test_launch
import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks import allreduce, train
from benchmarks.emulation import launch as bench_launch
from benchmarks.emulation.launch import LaunchError
from benchmarks.methods import catalogue
from benchmarks.reporting import results

REPO = Path(__file__).resolve().parent.parent
TINY = ("--network", "loopback", "--workers", "2")


@pytest.fixture(autouse=True)
def own_environment():
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--methods", "fp32,fp8"), "unknown method 'fp8': expected a list of fp32, fp16, adasum"),
        (("--methods", ""), "unknown method '': expected a list of"),
        (("--workers", "1"), "--workers: expected 2 or more, got 1"),
        (("--rate", "fast"), "--rate: expected a number with kbit, mbit or gbit, got 'fast'"),
        (("--epochs", "0"), "--epochs: expected 1 or more, got 0"),
        (
            ("--limit", "100", "--batch", "64", "--data", "digits"),
            "too few samples: 4 workers with batches of 64 need 256 for one step, there are 100",
        ),
        (
            ("--model", "vgg"),
            "--model: expected cnn, resnet18, resnet50, bert-base, gpt2, lstm or ",
        ),
        (("--model-option", "width"), "--model-option: expected NAME=VALUE, got 'width'"),
        (
            ("--data", "nowhere"),
            "--data: expected auto, fashion-mnist, digits, synthetic, a folder",
        ),
        (
            ("--model", "lstm", "--model-option", "vocab_size=100"),
            "--model-option vocab_size: expected 256 or more, as bytes need, got 100",
        ),
        (("--data", str(REPO)), f"{REPO}: expected train/<class>/<image> in it, got"),
        (
            ("--model", "gpt2", "--data", "digits"),
            "the model takes tokens, and --data names images",
        ),
        (("--num-warmup-batches", "-1"), "--num-warmup-batches: expected 0 or more, got -1"),
        (
            ("--target-accuracy", "91"),
            "--target-accuracy: expected a share between 0 and 1, got 91",
        ),
        (("--warmup", "1"), "--warmup: expected a share from 0, below 1, got 1"),
        (("--warmup", "-0.1"), "--warmup: expected a share from 0, below 1, got -0.1"),
        (
            ("--learning-rate", "adasum=0.1"),
            "--learning-rate: expected METHOD=VALUE, a method of this run and a number above 0",
        ),
        (("--amp", "fp16", "--methods", "adasum"), "--amp fp16: adasum exchanges weights' changes"),
    ],
)
def test_bad_input_is_one_sentence_before_any_rank_starts(tmp_path, capsys, arguments, sentence):
    status = train.main(["--network", "loopback", "--out", str(tmp_path), *arguments])
    assert status == 2
    assert f"train: {sentence}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_rights_for_the_cluster(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench_launch.netns, "why_unavailable", lambda: "it needs root")
    assert train.main(["--network", "cluster", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "train: it needs root\n"


def test_no_launcher(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench_launch.shutil, "which", lambda program: None)
    assert train.main(["--network", "loopback", "--out", str(tmp_path)]) == 2
    assert "train: mpirun is not on PATH: install Open MPI" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("-b", "1023"), "expected a multiple of 4 bytes above 0, got '1023'"),
        (("-b", "1T"), "expected bytes, as in 1024, 1K or 64M, got '1T'"),
        (("-b", "2K", "-e", "1K"), "--max-bytes: expected no less than --min-bytes"),
        (("-f", "1"), "--factor: expected 2 or more, got 1"),
    ],
)
def test_sizes_that_make_no_sense(capsys, arguments, complaint) -> None:
    with pytest.raises(SystemExit) as left:
        allreduce.main(arguments)
    assert left.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--workers", "3", "--methods", "fp32,adasum"), "'adasum' needs a power of two of work"),
        (("--methods", "local"), "method 'local' is not for this benchmark: expected a list of"),
        (("-b", "1024G"), "--max-bytes: 4 workers need about 2.2e+04 GB of memory for 1.1e+03 GB"),
    ],
)
def test_methods_that_cannot_be_measured(tmp_path, capsys, arguments, sentence) -> None:
    line = ["--network", "loopback", "--out", str(tmp_path), *arguments]
    assert allreduce.main(line) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sizes_grow_by_the_factor() -> None:
    assert allreduce.sizes(allreduce.parse(["-b", "1K", "-e", "9K"])) == [1024, 2048, 4096, 8192]
    assert allreduce.sizes(allreduce.parse(["-b", "1M", "-e", "5M", "-f", "4"])) == [
        1 << 20,
        1 << 22,
    ]


def follow(folder: Path, program: str, stall: float = 20) -> list[dict]:
    """Follows a Python program that gets the events' path as its argument."""
    events, log = folder / "events", folder / "log"
    command = [sys.executable, "-c", program, str(events)]
    return list(bench_launch.follow(command, events, log, stall))


def test_events_come_whole_and_in_order(tmp_path: Path) -> None:
    program = (
        "import sys, time; f = open(sys.argv[1], 'a')\n"
        "for part in ('{\"a\": 1}\\n{\"b\"', ': 2}\\n', '{\"c\": 3}\\n'):\n"
        "    f.write(part); f.flush(); time.sleep(0.3)"
    )
    assert follow(tmp_path, program) == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_ranks_that_fail_are_reported_with_their_last_words(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="the ranks failed, status 3") as error:
        follow(tmp_path, "print('last words', flush=True); raise SystemExit(3)")
    assert str(error.value).endswith("last words")


def test_silent_ranks_are_ended_with_all_their_children(tmp_path: Path) -> None:
    # The child is in a session of its own and deaf to SIGTERM, as a stuck rank may be.
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    program = (
        "import subprocess, sys, time; child = subprocess.Popen("
        f"[sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    with pytest.raises(LaunchError, match="no sign of life for 2 s"):
        follow(tmp_path, program, stall=2)
    pid = int((tmp_path / "log").read_text())
    limit = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit
        time.sleep(0.05)


def command(module: str, folder: Path, *arguments: str) -> Path:
    """Runs a benchmark in two processes on loopback and returns its result directory."""
    line = [sys.executable, "-m", module, *TINY, "--out", str(folder / "out"), *arguments]
    outcome = test_launch.run(line, folder / "launch", limit=150, cwd=REPO)
    assert not outcome.killed, outcome.report()
    assert outcome.returncode == 0, outcome.report()
    (made,) = (folder / "out").iterdir()
    return made


@pytest.mark.skipif(not test_launch.has("horovod"), reason="needs Horovod")
@pytest.mark.skipif(not test_launch.has("sklearn"), reason="needs scikit-learn's digits")
def test_a_tiny_training(tmp_path: Path) -> None:
    folder = command(
        "benchmarks.train",
        tmp_path,
        *("--data", "digits", "--limit", "192", "--batch", "16", "--epochs", "2"),
        *("--num-batches-per-iter", "3"),
    )
    names = {path.name for path in folder.iterdir()}
    assert {"result.json", "report.txt", "accuracy.png", "epoch-time.png", "ranks.log"} <= names
    result = results.load(folder)
    coordinates = result["setup"]["parameters"]
    assert [m["name"] for m in result["methods"]] == ["fp32", "fp16", "vote", "signum"]
    for method in result["methods"]:
        assert method["replicas_equal"]
        assert [e["steps"] for e in method["epochs"]] == [6, 6]
        assert all(0 < e["wait_seconds"] < e["seconds"] for e in method["epochs"])
        assert all(0 <= e["accuracy"] <= 1 and e["loss"] > 0 for e in method["epochs"])
        assert all(len(e["iterations"]) == 2 and min(e["iterations"]) > 0 for e in method["epochs"])
        assert all(0 < e["harness_seconds"] < e["seconds"] for e in method["epochs"])
        assert all((e["stats"] is not None) == method["votes"] for e in method["epochs"])
    assert not list(folder.glob("data-*"))
    # Two workers: an allreduce of fp32 sends 4 bytes a coordinate each, a vote little over 1 bit.
    fp32, fp16, voted, signum = (row["payload"] for row in result["summary"])
    assert (fp32, fp16) == (4 * coordinates, 2 * coordinates)
    assert coordinates / 8 < voted < 1.03 * coordinates / 8
    assert signum == voted


@pytest.mark.skipif(not test_launch.has("horovod"), reason="needs Horovod")
def test_a_tiny_language_model_by_all_kinds_of_methods(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"the same words again and again; " * 200)
    names = ["adasum", "vote-zero", "lion", "ef_sign", "onebit", "ddp-bf16", "powersgd-2"]
    names += ["topk", "local"]
    folder = command(
        "benchmarks.train",
        tmp_path,
        *("--model", "lstm", "--model-option", "hidden=32", "--model-option", "layers=1"),
        *("--methods", ",".join(names), "--data", str(text)),
        *("--sequence", "16", "--num-iters", "2", "--num-batches-per-iter", "4", "--epochs", "2"),
        *("--num-warmup-batches", "3", "--turns", "training", "--target-accuracy", "0.01"),
        *("--learning-rate", "vote-zero=0.003", "--learning-rate", "lion=0.002"),
        *("--warmup", "0.25"),
    )
    result = results.load(folder)
    assert [method["name"] for method in result["methods"]] == names
    assert result["methods"][1]["optimizer"].startswith("SGD on the verdict, learning rate 0.003,")
    assert result["methods"][2]["optimizer"] == (
        "Lion (betas 0.9 and 0.99) on the verdict, learning rate 0.002"
    )
    assert (
        result["methods"][3]["optimizer"] == "SGD on the verdict, learning rate 0.3, momentum 0.9"
    )
    assert (
        "rise linearly over the first 25 % of the training" in (folder / "report.txt").read_text()
    )
    for method in result["methods"]:
        first, last = method["epochs"]
        assert (first["steps"], len(first["iterations"])) == (8, 2)
        assert last["loss"] < first["loss"] < 6  # of 256 bytes at random: 5.5
        alone = method["name"] == "local"
        assert method["replicas_equal"] is (None if alone else True)
        assert (last["accuracy"] is None) is alone
        told = method["name"] in ("vote-zero", "lion", "ef_sign", "onebit", "local")
        assert (last["wait_seconds"] is not None) is told
    assert all(row["exposed"] is not None for row in result["summary"])


@pytest.mark.skipif(not test_launch.has("transformers"), reason="needs transformers")
@pytest.mark.skipif(not test_launch.has("horovod"), reason="needs Horovod")
def test_a_tiny_resnet_in_mixed_precision_on_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(2):
            for image in range(32):
                path = tmp_path / "images" / split / str(label) / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 128, (32, 32, 3), np.uint8) + np.uint8(127 * label)
                Image.fromarray(pixels).save(path)
    folder = command(
        "benchmarks.train",
        tmp_path,
        *("--model", "resnet18", "--model-option", "embedding_size=8"),
        *("--model-option", "hidden_sizes=[8, 8, 16, 16]", "--data", str(tmp_path / "images")),
        *("--batch", "4", "--epochs", "5", "--amp", "fp16", "--methods", "fp32,vote,ddp"),
        *("--learning-rate", "vote=0.002"),
    )
    for method in results.load(folder)["methods"]:
        assert method["replicas_equal"]
        assert [e["steps"] for e in method["epochs"]] == [8] * 5
        # Dark and bright images: judged by the workers' mean statistics of batch norm.
        assert method["epochs"][-1]["accuracy"] > 0.9, method["name"]


@pytest.mark.skipif(not test_launch.has("horovod"), reason="needs Horovod")
def test_a_tiny_vote_beside_allreduce(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    folder = command(
        "benchmarks.allreduce",
        tmp_path,
        *("-b", "1M", "-e", "2M", "-n", "3", "-w", "1", "--json", str(kept)),
    )
    result = results.load(folder)
    assert json.loads(kept.read_text()) == result
    assert {"allreduce.png", "report.txt"} <= {path.name for path in folder.iterdir()}
    found = [(row["method"], row["size"], row["wrong"]) for row in result["measured"]]
    names = ["fp32", "fp16", "vote", "signum"]
    assert found == [(name, size, 0) for size in (1 << 20, 1 << 21) for name in names]
    assert all(len(row["seconds"]) == 3 for row in result["measured"])


@pytest.mark.skipif(not test_launch.has("horovod"), reason="needs Horovod")
def test_a_tiny_exchange_by_all_methods(tmp_path: Path) -> None:
    size = 2 << 20
    folder = command(
        "benchmarks.allreduce",
        tmp_path,
        *("--methods", "all", "-b", str(size), "-n", "2", "-w", "1"),
        *("--network", "auto", "--rate", "none"),
    )
    result = results.load(folder)
    chosen = catalogue.resolve("all", catalogue.place("allreduce", 2))
    measured = {row["method"]: row for row in result["measured"]}
    assert list(measured) == [method.name for method in chosen]
    lossy = {"powersgd-1", "powersgd-2", "powersgd-4", "qsgd", "topk", "onebit-average"}
    for method in chosen:
        row = measured[method.name]
        assert row["wrong"] == (None if method.name in lossy else 0)
        assert (row["votes"], row["label"]) == (method.votes, method.label)
        assert min(row["seconds"]) > 0
        if result["network"]["interface"]:
            # The payload, counted or by formula, is what left the host, give or take headers, the
            # words that Horovod and DDP exchange beside it, and what is still on its way.
            assert 0.9 * row["payload_bytes"] < row["wire_bytes"] + 10e3
            assert row["wire_bytes"] < 1.05 * row["payload_bytes"] + 40e3, method.name
    # Two workers: a ring sends all of it once, a vote little over a bit a coordinate.
    assert measured["gloo"]["payload_bytes"] == measured["adasum"]["payload_bytes"] == size
    assert measured["sign-bytes"]["payload_bytes"] == size / 4
    for name in ("vote", "signum", "lion", "ef_sign", "onebit", "vote-horovod", "vote-mpi4py"):
        assert size / 32 < measured[name]["payload_bytes"] < 1.03 * size / 32
    assert result["setup"]["memory_bytes_per_second"] > 1e7
    assert {path.name for path in folder.glob("config*")} == {
        *("config.json", "config-2.json", "config-3.json")
    }


@pytest.mark.skipif(not test_launch.has("horovod"), reason="needs Horovod")
def test_what_a_tiny_backward_hides(tmp_path: Path) -> None:
    folder = command(
        "benchmarks.overlap",
        tmp_path,
        *("--coordinates", "100000", "--layers", "5", "-n", "3", "-w", "1"),
    )
    result = results.load(folder)
    assert [row["method"] for row in result["measured"]] == ["fp32", "fp16", "vote", "signum"]
    for row in result["measured"]:
        assert all(len(row[what]) == 3 for what in ("alone", "backward", "exposed"))
        # Backward sleeps as long as the exchange alone takes, give or take what is not its own.
        assert min(row["backward"]) >= sorted(row["alone"])[1] * 0.99
    assert "exposed / alone" in (folder / "report.txt").read_text()


@pytest.mark.skipif(not test_launch.has("horovod"), reason="needs Horovod")
def test_steps_of_optimizers(tmp_path: Path) -> None:
    line = [*test_launch.mpirun(2), sys.executable, "-m", "benchmarks.steps"]
    line += ["--coordinates", "1000", "-n", "3"]
    outcome = test_launch.run(line, tmp_path, limit=60, cwd=REPO)
    assert outcome.returncode == 0, outcome.report()
    assert "1,000 weights in each of 2 processes, ms a step:" in outcome.output
    for name in ("SGD, momentum", "AdamW", "AdamW, fused", "Signum, by vote", "Lion, by vote"):
        (found,) = re.findall(rf"^{name}: (\S+) \((\S+) to (\S+)\)$", outcome.output, re.MULTILINE)
        middle, least, most = map(float, found)
        assert 0 < least <= middle <= most
