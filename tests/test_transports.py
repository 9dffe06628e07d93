"""MPI and Horovod's own collectives, on either controller, carry the same votes."""

from __future__ import annotations

import json
import re

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)


def test_transports_give_equal_verdicts(program):
    launches = {
        "mpi": (launch.mpirun(3), {"HVD_SIGN_TRANSPORT": "mpi"}, "MpiTransport"),
        "horovod": (launch.mpirun(3), {"HVD_SIGN_TRANSPORT": "horovod"}, "HorovodTransport"),
        "gloo": (launch.horovodrun(3, gloo=True), {}, "HorovodTransport"),
    }
    digests = set()
    for command, extra, transport in launches.values():
        outcome = program("transport_digest", command, extra=extra, limit=150)
        found = re.findall(r"digest (\w{64}) (\w+Transport)", outcome.output)
        assert [used for _, used in found] == [transport] * 3, outcome.report()
        digests.update(digest for digest, _ in found)
    assert len(digests) == 1


def test_mpi_cannot_be_forced_on_processes_that_it_did_not_start(program):
    with pytest.raises(pytest.fail.Exception, match="HVD_SIGN_TRANSPORT=mpi, but the ranks were"):
        program(
            "transport_digest",
            launch.horovodrun(2, gloo=True),
            extra={"HVD_SIGN_TRANSPORT": "mpi"},
        )


def test_refusals_over_horovods_collectives(inner):
    inner(2, "ranks_torch_refused.py", extra={"HVD_SIGN_TRANSPORT": "horovod"})


@pytest.mark.parametrize("start", ["mpirun", "gloo"])
def test_planning_over_horovods_collectives(program, tmp_path, start):
    """Constants say that the wire outruns the tally, so that the fallback is taken."""
    file = tmp_path / "link.json"
    constants = {"latency": 1e-6, "bandwidth": 1e15, "pack": 1e15, "tally": 1e3, "apply": 1e15}
    file.write_text(json.dumps({"version": 1, **constants}))
    extra = {"HVD_SIGN_LINK_FILE": str(file), "HVD_SIGN_TRANSPORT": "horovod"}
    command = launch.mpirun(3) if start == "mpirun" else launch.horovodrun(3, gloo=True)
    outcome = program("planned_over_horovod", command, extra=extra)
    assert len(re.findall(r"rank \d done", outcome.output)) == 3, outcome.report()
    told = "goes by a dense fp32 allreduce, which is expected to take"
    assert outcome.output.count(told) == 2  # two optimizers with a fallback, told by one rank each


@pytest.mark.parametrize("start", ["mpirun", "gloo"])
def test_unnamed_operations_beside_votes_over_horovod(program, start):
    command, rounds = {
        "mpirun": (launch.mpirun(4), "30"),
        "gloo": (launch.horovodrun(4, gloo=True), "8"),  # several times slower
    }[start]
    extra = {"HVD_SIGN_TRANSPORT": "horovod"}
    outcome = program("unnamed", command, rounds, extra=extra, limit=150)
    assert len(re.findall(r"rank \d done", outcome.output)) == 4, outcome.report()
