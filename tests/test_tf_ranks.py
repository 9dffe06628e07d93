"""The TensorFlow binding under real MPI ranks, with Horovod where that is, and on MPI alone."""

from __future__ import annotations

import launch
import pytest

pytestmark = pytest.mark.skipif(not launch.has("tensorflow"), reason="needs TensorFlow")

# All of it once by each runtime; which numbers of ranks there may be is the core's matter.
FILES = {"horovod": ["ranks_tf_*.py"], "mpi": ["ranks_mpi_tf.py", "ranks_tf_*.py"]}
RUNS = [("horovod", 3), ("mpi", 2)] if launch.has("horovod") else [("mpi", 2)]
# A part on one rank; and on three where not all of it is, for process sets of several ranks.
PART = [
    *("ranks_mpi_tf.py", "ranks_tf_apart.py", "ranks_tf_compression.py"),
    *("ranks_tf_ops.py", "ranks_tf_sign_*.py"),
]
FEW = [1] if launch.has("horovod") else [1, 3]


def settings(runtime: str) -> dict[str, str]:
    return {"HVD_SIGN_RUNTIME": runtime, "TF_CPP_MIN_LOG_LEVEL": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "ranks"), RUNS)
def test_tensorflow(inner, ranks, runtime):
    inner(ranks, *FILES[runtime], limit=600, extra=settings(runtime))


@pytest.mark.parametrize("ranks", FEW)
def test_tensorflow_on_mpi_alone(inner, ranks):
    inner(ranks, *PART, limit=300, extra=settings("mpi"))
