"""Forked children of ranks, and who starts and ends MPI, on both runtimes and in the core."""

from __future__ import annotations

import launch
import pytest

NEEDS_HOROVOD = pytest.mark.skipif(not launch.has("horovod"), reason="needs Horovod")


def done(outcome: launch.Outcome, ranks: int) -> None:
    assert outcome.output.count("a rank is done") == ranks, outcome.report()
    # Only the child that fails does so aloud.
    assert outcome.output.count("Traceback") == ranks, outcome.report()


@pytest.mark.parametrize(
    ("starter", "engine"), [("us", "auto"), ("mpi4py", "python"), ("nobody", "auto")]
)
def test_core(program, engine, starter):
    extra = {"HVD_SIGN_ENGINE": engine}
    done(program("forked", launch.mpirun(2), "numpy", starter, extra=extra), 2)


def test_core_alone(program):
    done(program("forked", [], "numpy", "us"), 1)


@pytest.mark.skipif(not launch.has("torch"), reason="needs PyTorch")
@pytest.mark.parametrize(
    ("runtime", "starter"), [pytest.param("horovod", "us", marks=NEEDS_HOROVOD), ("mpi", "nobody")]
)
def test_torch(program, runtime, starter):
    extra = {"HVD_SIGN_RUNTIME": runtime}
    done(program("forked", launch.mpirun(2), "torch", starter, limit=240, extra=extra), 2)


@pytest.mark.skipif(not launch.has("tensorflow"), reason="needs TensorFlow")
@pytest.mark.parametrize(
    ("runtime", "starter"), [pytest.param("horovod", "nobody", marks=NEEDS_HOROVOD), ("mpi", "us")]
)
def test_tensorflow(program, runtime, starter):
    extra = {"HVD_SIGN_RUNTIME": runtime, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done(program("forked", launch.mpirun(2), "tensorflow", starter, limit=240, extra=extra), 2)
