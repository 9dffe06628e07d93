"""The native engine and the mpi4py path: the same verdicts, bit for bit, whatever the segments."""

import importlib.util
import re

import launch
import pytest

RUNS = {
    "python": ("python", 25_000, "1", "exchanged"),
    "small segments": ("native", 192, "1", "exchanged"),
    "one segment": ("native", 10**6, "1", "inline"),
    "three threads": ("native", 10**6, "3", "exchanged"),
}


@pytest.mark.skipif(
    importlib.util.find_spec("hvd_sign._engine") is None, reason="built without the native engine"
)
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.quick), 3, 4])
def test_engines_and_segments_give_equal_verdicts(program, ranks):
    digests = set()
    for engine, segment, threads, small in RUNS.values():
        outcome = program(
            "engine_digest",
            launch.mpirun(ranks),
            str(segment),
            small,
            extra={"HVD_SIGN_ENGINE": engine, "HVD_SIGN_THREADS": threads},
        )
        found = re.findall(r"digest (\w{64}) (native|python)", outcome.output)
        assert len(found) == ranks, outcome.report()
        assert {used for _, used in found} == {engine}
        digests.update(digest for digest, _ in found)
    assert len(digests) == 1


def test_core_without_the_native_engine(inner):
    inner(3, "ranks_core_*.py", extra={"HVD_SIGN_ENGINE": "python"})


@pytest.mark.quick
def test_torch_votes_with_three_threads(inner):
    inner(2, "ranks_torch_mixed.py", extra={"HVD_SIGN_THREADS": "3"})


@pytest.mark.parametrize("threads", ["0", "-1", "many"])
def test_a_wrong_number_of_threads_is_refused(program, threads):
    with pytest.raises(pytest.fail.Exception, match="HVD_SIGN_THREADS: expected 1 or more"):
        program(
            "engine_digest", launch.mpirun(2), "64", "inline", extra={"HVD_SIGN_THREADS": threads}
        )


def test_an_unknown_engine_is_refused(program):
    with pytest.raises(pytest.fail.Exception, match="HVD_SIGN_ENGINE: expected one of 'auto'"):
        program(
            "engine_digest",
            launch.mpirun(2),
            "64",
            "inline",
            extra={"HVD_SIGN_ENGINE": "warp"},
            limit=60,
        )
