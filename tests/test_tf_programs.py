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
