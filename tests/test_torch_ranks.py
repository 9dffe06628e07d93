"""The PyTorch binding under real MPI ranks, with Horovod."""

from __future__ import annotations

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_torch(inner, ranks):
    inner(ranks, "ranks_torch_*.py", limit=900)


def test_torch_seven_ranks(inner):
    inner(7, "ranks_torch_mixed.py", "ranks_torch_process_sets.py", limit=900)


@pytest.mark.parametrize("runtime", ["horovod", "mpi"])
def test_errors_are_caught_as_horovods(inner, runtime):
    inner(2, "ranks_errors_torch.py", extra={"HVD_SIGN_RUNTIME": runtime})


def test_torch_uneven(inner):
    inner(3, "ranks_uneven.py")


def test_torch_under_horovodrun(inner):
    inner(2, "ranks_torch_mixed.py", "ranks_torch_state.py", launcher=launch.horovodrun)
