"""The TensorFlow binding under real MPI ranks, with Horovod where that is, and on MPI alone."""

from __future__ import annotations

import launch
import pytest

# Beside Horovod our own runtime runs once; where it is alone, on more ranks.
if launch.has("horovod"):
    RUNS = [("horovod", 2), ("horovod", 4), ("mpi", 2)]
else:
    RUNS = [("mpi", 2), ("mpi", 4)]

pytestmark = pytest.mark.skipif(not launch.has("tensorflow"), reason="needs TensorFlow")


def settings(runtime: str) -> dict[str, str]:
    return {"HVD_SIGN_RUNTIME": runtime, "TF_CPP_MIN_LOG_LEVEL": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "ranks"), RUNS)
def test_tensorflow(inner, ranks, runtime):
    inner(ranks, "ranks_tf_*.py", limit=600, extra=settings(runtime))


@pytest.mark.parametrize("ranks", [1, 3])
def test_tensorflow_on_mpi_alone(inner, ranks):
    files = ("ranks_mpi_tf.py", "ranks_tf_ops.py", "ranks_tf_compression.py", "ranks_tf_sign_*.py")
    inner(ranks, *files, limit=300, extra=settings("mpi"))
