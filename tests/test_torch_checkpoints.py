"""Checkpoints over several launches: of other sizes, on both runtimes, and killed amid a save."""

from __future__ import annotations

import re
import sys

import launch
import pytest

pytestmark = pytest.mark.skipif(not launch.has("torch"), reason="needs PyTorch")

RUNTIMES = [
    pytest.param(
        "horovod", marks=pytest.mark.skipif(not launch.has("horovod"), reason="needs Horovod")
    ),
    "mpi",
]


@pytest.fixture
def start(tmp_path):
    """start(ranks, argument...): the program's outcome, on one checkpoint for all launches."""
    count = iter(range(100))

    def run(ranks: int, *arguments: object, runtime: str = "auto") -> launch.Outcome:
        script = launch.RANKS / "programs" / "checkpoint.py"
        command = [*launch.mpirun(ranks), sys.executable, str(script), str(tmp_path / "saved")]
        return launch.run(
            [*command, *map(str, arguments)],
            tmp_path / f"run{next(count)}",
            limit=60,
            extra={"HVD_SIGN_RUNTIME": runtime},
        )

    return run


def done(outcome: launch.Outcome, ranks: int, after: list[int]) -> None:
    assert outcome.returncode == 0, outcome.report()
    found = re.findall(r"rank \d of (\d) done, after (\[[\d, ]*\])", outcome.output)
    assert found == [(str(ranks), str(after))] * ranks, outcome.report()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_launches_of_other_sizes(start, runtime):
    sizes = [2, 3, 3, 1, 2]
    for number, ranks in enumerate(sizes):
        done(start(ranks, runtime=runtime), ranks, sizes[:number])


@pytest.mark.skipif(not launch.has("horovod"), reason="needs Horovod")
def test_what_horovod_saved_our_own_runtime_loads_and_back(start):
    for number, runtime in enumerate(["horovod", "mpi", "horovod"]):
        done(start(2, runtime=runtime), 2, [2] * number)


@pytest.mark.parametrize(("rank", "count"), [(1, 1), (0, 7), (0, 10)], ids=lambda value: str(value))
def test_a_job_that_is_killed_amid_a_save(start, tmp_path, rank, count):
    """While files are written, as the manifest is, and after it: the old one, or the new."""
    done(start(2), 2, [])
    killed = start(2, rank, count)
    assert killed.returncode != 0
    assert "done" not in killed.output, killed.report()
    left = sorted(place.name for place in (tmp_path / "saved").iterdir())
    assert left == ["00000001", "00000002"]
    done(start(2), 2, [2] if count < 10 else [2, 2])
    assert [place.name for place in (tmp_path / "saved").iterdir()] == ["00000003"]
