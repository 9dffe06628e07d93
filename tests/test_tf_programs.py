"""Whole programs that use TensorFlow's binding, started as users start them."""

from __future__ import annotations

import re

import launch
import pytest

QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2"}


@pytest.mark.skipif(
    not (launch.has("tensorflow") and launch.has("horovod")), reason="needs Horovod's operations"
)
@pytest.mark.parametrize(("who", "ranks"), [("all", 2), ("part", 3)])
def test_a_script_of_tensorflow_1(program, who, ranks):
    outcome = program("tf1_script", launch.mpirun(ranks), who, extra=QUIET)
    assert len(re.findall(r"rank \d+ done", outcome.output)) == ranks, outcome.report()
