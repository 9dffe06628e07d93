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


def test_jobs_that_are_killed_amid_a_save(start, tmp_path):
    """While files are written, as the manifest is, and after it: the old one, or the new."""
    done(start(2), 2, [])
    sizes = [2]
    for number, (rank, count, is_saved) in enumerate([(1, 1, False), (0, 7, False), (0, 10, True)]):
        killed = start(2, rank, count)
        assert killed.returncode != 0
        assert "done" not in killed.output, killed.report()
        left = sorted(place.name for place in (tmp_path / "saved").iterdir())
        assert left == [f"{2 * number + 1:08}", f"{2 * number + 2:08}"]
        sizes += [2] * is_saved
        done(start(2), 2, sizes)
        sizes.append(2)
        assert [place.name for place in (tmp_path / "saved").iterdir()] == [f"{2 * number + 3:08}"]
