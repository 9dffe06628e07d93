"""The benchmarks with TensorFlow: its models, tiny trainings, and a vote beside PyTorch's."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

import launch as test_launch
import numpy as np
import pytest
from test_bench_run import REPO, command

tf = pytest.importorskip("tensorflow", minversion="2.15")
pytest.importorskip("sklearn")

from tensorflow import keras

from benchmarks import report, train
from benchmarks.ranks.tf import models
from benchmarks.ranks.tf.models import ModelError, build, check
from benchmarks.reporting import results
from benchmarks.training import frameworks, tasks

DIGITS = ("--data", "digits", "--limit", "192", "--batch", "16", "--epochs", "2")
TRAINING = ("--framework", "tensorflow", *DIGITS, "--num-batches-per-iter", "3")


@pytest.fixture(autouse=True)
def own_environment():
    with mock.patch.dict(os.environ):
        yield


# Keras's convolutions have biases: 64 of the first, and in a stage of n blocks of width w
# n (w + w + 4 w), and 4 w of its shortcut.
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
BIASES = 64 + sum(n * 6 * w + 4 * w for n, w in STAGES)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "weights"),
    [
        # Both as PyTorch's, which have 16 x 9 + 16, 32 x 16 x 9 + 32, 1024 x 1568 + 1024 and 10 x
        # 1024 + 10 weights, and 25,557,032.
        ("cnn", (1, 28, 28), 10, 160 + 4_640 + 1_606_656 + 10_250),
        ("resnet50", (3, 224, 224), 1000, 25_557_032 + BIASES),
    ],
)
def test_models_have_the_weights_that_they_should(name, shape, classes, weights) -> None:
    assert check(name, shape, classes, {}) == weights


def test_every_model_of_the_framework_has_a_task() -> None:
    known = frameworks.FRAMEWORKS["tensorflow"].models
    assert set(models.MODELS) == set(known) <= set(tasks.TASKS)


def test_a_model_answers_and_learns() -> None:
    keras.utils.set_random_seed(0)
    model = build("cnn", (3, 12, 8), 5, {"width": 16})
    inputs = tf.constant(np.random.default_rng(0).standard_normal((4, 12, 8, 3), np.float32))
    labels = tf.constant([0, 1, 2, 3], tf.int64)
    losses = []
    for _ in range(6):
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            loss = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            loss = tf.reduce_mean(loss)
        for weight in model.trainable_weights:
            assert weight.dtype == "float32"
        gradients = tape.gradient(loss, model.trainable_weights)
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
            weight.assign_sub(0.1 * gradient)
        losses.append(float(loss))
    assert logits.shape == (4, 5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "shape", "options", "complaint"),
    [
        ("cnn", (1, 28, 28), {"depth": 3}, "--model-option: cnn cannot be built so: "),
        ("cnn", (1, 3, 3), {}, "--model cnn does not take images of 1 x 3 x 3: "),
        ("resnet50", (1, 28, 28), {}, "--model resnet50 does not take images of 1 x 28 x 28: "),
    ],
)
def test_what_cannot_be_built_is_one_sentence(name, shape, options, complaint) -> None:
    with pytest.raises(ModelError) as error:
        check(name, shape, 10, options)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--methods", "ddp"), "method 'ddp' needs PyTorch: with TensorFlow expected a list of f"),
        (("--model", "lstm"), "--model: expected cnn or resnet50 with TensorFlow, got 'lstm'"),
        (("--amp", "fp16"), "--amp: expected bf16 with TensorFlow, got fp16"),
        (("--model", "resnet50", "--data", "digits"), "--model resnet50 does not take images of 1"),
        (("--data", "digits", "--model-option", "depth=3"), "--model-option: cnn cannot be built"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, arguments, sentence) -> None:
    line = ["--framework", "tensorflow", "--network", "loopback", "--out", str(tmp_path)]
    assert train.main([*line, *arguments]) == 2
    assert f"train: {sentence}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


PROGRAM = """
import sys
from importlib.machinery import ModuleSpec

framework, absent, folder = sys.argv[1:]


class Hidden:  # as a bare folder of the name is found, and cannot be used
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name == absent else None

    def create_module(self, spec):
        raise ImportError(f"{absent} is hidden")


sys.meta_path.insert(0, Hidden())
from benchmarks import train
from benchmarks.training import frameworks, plan

__import__(frameworks.FRAMEWORKS[framework].program)
line = ["--framework", framework, "--network", "loopback", "--data", "digits"]
print(plan.make_plan(train.parse(line)).setup["model_text"])
print(train.main([*line, "--framework", absent, "--out", folder]))
"""


@pytest.mark.parametrize(
    ("framework", "absent"), [("tensorflow", "torch"), ("torch", "tensorflow")]
)
def test_a_framework_needs_no_other_one(tmp_path, framework: str, absent: str) -> None:
    pytest.importorskip(framework)
    line = [sys.executable, "-c", PROGRAM, framework, absent, str(tmp_path / "out")]
    outcome = test_launch.run(line, tmp_path / "run", limit=60, cwd=REPO)
    assert outcome.returncode == 0, outcome.report()
    assert "a convolutional network of 1,621,706 weights\n" in outcome.output
    needed = frameworks.FRAMEWORKS[absent].text
    assert f"train: this needs {needed}, which is not installed for {sys.executable}: " in (
        outcome.output
    )
    assert outcome.output.endswith("\n2\n")


def check_training(folder: Path, labels: list[str]) -> results.Result:
    result = results.load(folder)
    assert result["framework"] == "tensorflow"
    assert result["versions"]["tensorflow"] == tf.__version__
    assert [method["label"] for method in result["methods"]] == labels
    for method in result["methods"]:
        first, last = method["epochs"]
        alone = method["name"] == "local"
        assert method["replicas_equal"] is (None if alone else True)
        assert (first["steps"], last["steps"]) == (6, 6)
        assert last["loss"] < first["loss"] < 4  # of ten classes at random: 2.3
        assert all((e["accuracy"] is None) == alone for e in (first, last))
        assert alone or last["accuracy"] > 0.3
        assert all((e["stats"] is not None) == method["votes"] for e in (first, last))
        assert all((e["wait_seconds"] is None) is not alone for e in (first, last))
    return result


@pytest.mark.skipif(
    frameworks.FRAMEWORKS["tensorflow"].runtime() != frameworks.HOROVOD,
    reason="needs Horovod's library for this TensorFlow",
)
def test_a_tiny_training_beside_horovod_and_its_page(tmp_path: Path) -> None:
    folder = command(
        "benchmarks.train", tmp_path, *TRAINING, "--methods", "fp32,fp16,vote,lion,ef_sign,local"
    )
    labels = ["Horovod fp32", "Horovod fp16", "majority vote", "Lion by vote"]
    labels += ["error feedback by vote", "no exchange"]
    result = check_training(folder, labels)
    assert result["runtime"] == "horovod"
    coordinates = result["setup"]["parameters"]
    fp32, fp16, voted, lion, ef_sign, alone = (row["payload"] for row in result["summary"])
    assert (fp32, fp16, alone) == (4 * coordinates, 2 * coordinates, 0)
    assert coordinates / 8 < voted < 1.03 * coordinates / 8
    assert lion == voted
    assert voted < ef_sign < 1.1 * voted  # it also sends what its scales are made of
    # All began with the same weights, and Horovod's fp16 is hardly another mean than its fp32.
    losses = {method["name"]: method["epochs"][0]["loss"] for method in result["methods"]}
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert report.main([str(folder), "--out", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "index.html").read_text()
    assert f"TensorFlow {'.'.join(tf.__version__.split('.')[:2])}" in text


def test_a_tiny_training_without_horovod(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HVD_SIGN_RUNTIME", "mpi")
    folder = command("benchmarks.train", tmp_path, *TRAINING)
    result = check_training(folder, ["MPI fp32", "majority vote", "Signum by vote"])
    assert result["runtime"] == "mpi"


@pytest.mark.skipif(not test_launch.has("torch"), reason="needs PyTorch")
def test_a_tiny_vote_of_each_framework_in_the_same_ranks(tmp_path: Path) -> None:
    folder = command(
        "benchmarks.allreduce",
        tmp_path,
        *("--methods", "vote,vote-tensorflow", "-b", "1M", "-n", "3", "-w", "1"),
    )
    result = results.load(folder)
    ours, theirs = result["measured"]
    assert theirs["label"] == "majority vote, TensorFlow"
    assert (ours["wrong"], theirs["wrong"]) == (0, 0)
    assert ours["payload_bytes"] == theirs["payload_bytes"]
    assert len(theirs["seconds"]) == 3
