"""Random programs of votes, Horovod operations and optimizers' steps, on every transport."""

from __future__ import annotations

import re

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)


@pytest.mark.parametrize(
    ("transport", "engine", "rounds", "least"),
    [
        ("mpi", "auto", 150, 3000),
        ("mpi", "python", 50, 1000),
        ("horovod", "auto", 30, 600),
    ],
)
def test_interleavings(program, transport, engine, rounds, least):
    extra = {"HVD_SIGN_TRANSPORT": transport, "HVD_SIGN_ENGINE": engine}
    command = launch.mpirun(4)
    outcome = program("interleavings", command, "1", str(rounds), extra=extra, limit=170)
    found = re.findall(r"rank (\d) done (\d+) operations", outcome.output)
    assert sorted(rank for rank, _ in found) == list("0123"), outcome.report()
    assert len({count for _, count in found}) == 1
    assert int(found[0][1]) >= least
