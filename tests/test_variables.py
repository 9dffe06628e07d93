"""Environment variables that reach one rank only: the same error on all ranks, not a hang."""

from __future__ import annotations

import functools
import re

import launch
import pytest

needs_horovod = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)
needs_both = pytest.mark.skipif(
    not (launch.has("tensorflow") and launch.has("horovod")), reason="needs TensorFlow and Horovod"
)
GLOO = functools.partial(launch.horovodrun, gloo=True)
ENGINE = "votes over MPI: HVD_SIGN_ENGINE differs between ranks: auto on ranks 0, 2; python on"
NO_ENGINE = "votes over MPI: refused on rank 1: HVD_SIGN_ENGINE: expected one of 'auto', 'native'"
RUNTIME = "hvd.init(): the runtime (HVD_SIGN_RUNTIME) differs between ranks: horovod on rank 0; mpi"
TRANSPORT = "hvd.init(): HVD_SIGN_TRANSPORT differs between ranks: auto on rank 0; horovod on"
OVER_GLOO = "hvd.init(): HVD_SIGN_TRANSPORT differs between ranks: horovod on rank 0; mpi on"


@pytest.mark.parametrize(
    ("ranks", "launcher", "arguments", "sentence"),
    [
        (3, launch.mpirun, "numpy HVD_SIGN_ENGINE python", ENGINE),
        (2, launch.mpirun, "numpy HVD_SIGN_ENGINE nativ", NO_ENGINE),
        pytest.param(2, launch.mpirun, "torch HVD_SIGN_RUNTIME mpi", RUNTIME, marks=needs_horovod),
        pytest.param(
            2, launch.mpirun, "torch HVD_SIGN_TRANSPORT horovod", TRANSPORT, marks=needs_horovod
        ),
        pytest.param(2, GLOO, "torch HVD_SIGN_TRANSPORT mpi", OVER_GLOO, marks=needs_horovod),
        pytest.param(
            2, launch.mpirun, "tensorflow HVD_SIGN_RUNTIME mpi", RUNTIME, marks=needs_both
        ),
    ],
)
def test_a_variable_of_one_rank_alone(program, ranks, launcher, arguments, sentence):
    outcome = program("differ", launcher(ranks), *arguments.split())
    found = re.findall(r"rank (\d): (DisagreementError: .*)", outcome.output)
    assert {rank for rank, _ in found} == {str(rank) for rank in range(ranks)}, outcome.report()
    assert len({said for _, said in found}) == 1
    assert found[0][1].startswith(f"DisagreementError: {sentence}")
    assert "mpirun hands it on by -x NAME" in found[0][1]
