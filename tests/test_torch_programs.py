"""Whole programs, started as users start them: their beginnings, their ends, their launchers."""

from __future__ import annotations

import re
import sys

import launch
import pytest

pytestmark = pytest.mark.skipif(
    not (launch.has("torch") and launch.has("horovod")), reason="needs PyTorch and Horovod"
)

STARTS = {
    "plain python": (1, []),
    "mpirun": (2, launch.mpirun),
    "horovodrun": (2, launch.horovodrun),
}


def done(outcome: launch.Outcome, ranks: int) -> None:
    assert len(re.findall(r"rank \d+ done", outcome.output)) == ranks, outcome.report()


@pytest.mark.parametrize("start", STARTS)
def test_script_with_one_import_and_one_argument_changed(tmp_path, start):
    script = (launch.RANKS / "programs" / "horovod_script.py").read_text()
    changed = script.replace("import horovod.torch as hvd", "import hvd_sign.torch as hvd").replace(
        "named_parameters=model.named_parameters(),",
        "named_parameters=model.named_parameters(), compression=hvd.Compression.sign,",
    )
    lines = [old != new for old, new in zip(script.split("\n"), changed.split("\n"), strict=True)]
    assert sum(lines) == 2
    (tmp_path / "train.py").write_text(changed)
    ranks, launcher = STARTS[start]
    command = [*(launcher(ranks) if launcher else []), sys.executable, str(tmp_path / "train.py")]
    outcome = launch.run(command, tmp_path / "run", limit=90)
    assert outcome.returncode == 0, outcome.report()
    found = re.findall(r"rank \d+ of (\d+) accuracy ([\d.]+) magnitudes (\d+)", outcome.output)
    assert len(found) == ranks, outcome.report()
    for size, accuracy, magnitudes in found:
        assert int(size) == ranks
        assert float(accuracy) > 0.9
        assert int(magnitudes) <= 2  # a verdict: 0 and 1


def test_the_script_unchanged(program):
    """The yardstick of the test above is a script that works with Horovod itself."""
    outcome = program("horovod_script", launch.mpirun(2))
    assert len(re.findall(r"of 2 accuracy", outcome.output)) == 2


@pytest.mark.parametrize("ranks", [1, 3])
def test_initialised_again(program, ranks):
    done(program("lifecycle", launch.mpirun(ranks)), ranks)


def test_without_a_launcher(program):
    done(program("lifecycle", []), 1)


@pytest.mark.parametrize("order", ["plain", "ours", "again", "neither"])
def test_horovod_initialised_first(program, order):
    done(program("horovod_first", launch.mpirun(2), order), 2)


def test_program_that_ends_in_the_middle(program):
    done(program("leaves_in_flight", launch.mpirun(2)), 2)


def test_init_with_a_communicator(program):
    done(program("subset", launch.mpirun(3)), 3)


def test_elastic_run_resets_votes_too(program):
    done(program("elastic", launch.mpirun(2)), 2)


def test_static_process_sets(program):
    done(program("static_process_sets", launch.mpirun(3)), 3)


def test_process_sets_of_communicators(program):
    done(program("process_sets_of_communicators", launch.mpirun(3)), 3)


def test_gloo(program):
    done(program("gloo", launch.horovodrun(2, gloo=True)), 2)
