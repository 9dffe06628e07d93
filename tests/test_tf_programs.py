"""Whole programs that use TensorFlow's binding, started as users start them."""

from __future__ import annotations

import re
import subprocess
import sys

import launch
import pytest
from test_names import MODULES

QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2"}

needs_horovod = pytest.mark.skipif(
    not (launch.has("tensorflow") and launch.has("horovod")), reason="needs Horovod's operations"
)


def done(outcome: launch.Outcome, ranks: int) -> None:
    assert len(re.findall(r"rank \d+ done", outcome.output)) == ranks, outcome.report()


@needs_horovod
@pytest.mark.parametrize(("who", "ranks"), [("all", 2), ("part", 3)])
def test_a_script_of_tensorflow_1(program, who, ranks):
    done(program("tf1_script", launch.mpirun(ranks), who, extra=QUIET), ranks)


@needs_horovod
def test_elastic_run_resets_votes_too(program):
    done(program("tf_elastic", launch.mpirun(2), extra=QUIET), 2)


@pytest.mark.skipif(not launch.has("tensorflow"), reason="needs TensorFlow")
def test_submodules_are_there_without_horovod(tmp_path):
    code = "".join(f"import hvd_sign.{module}\n" for module in MODULES["tensorflow"])
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=launch.environment(QUIET | {"HVD_SIGN_RUNTIME": "mpi"}),
        timeout=120,
        check=True,
    )


@pytest.mark.quick
@pytest.mark.skipif(not launch.has("tensorflow"), reason="needs TensorFlow")
def test_an_optimizer_of_signs_needs_no_ranks(tmp_path):
    """Neither MPI nor init(): it trains in a plain process, and loads what it has saved."""
    code = """
import sys
import numpy as np
import tensorflow as tf
import hvd_sign.tensorflow.keras as hvd

model = tf.keras.Sequential([tf.keras.layers.Input((2,)), tf.keras.layers.Dense(1, use_bias=False)])
model.compile(hvd.Lion(0.25), "mse")
model.set_weights([np.zeros((2, 1))])
x = np.array([[1.0, 0.0], [0.0, 1.0]])
model.fit(x, x @ [[3.0], [-3.0]], batch_size=2, epochs=3, verbose=0)
model.save("model.keras")
model = tf.keras.models.load_model("model.keras")
model.fit(x, x @ [[3.0], [-3.0]], batch_size=2, epochs=5, verbose=0)
print(model.get_weights()[0].ravel().tolist(), "mpi4py.MPI" in sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=launch.environment(QUIET | {"HVD_SIGN_RUNTIME": "mpi"}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.stdout.split("\n")[-2:] == ["[2.0, -2.0] False", ""], ran.stdout + ran.stderr
