"""Results of a cluster's nodes: what they are called, and how scaling is computed from them."""

from __future__ import annotations

from pathlib import Path

import bench_results
import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.emulation import allocation, launch
from benchmarks.emulation.launch import LaunchError
from benchmarks.errors import BenchError
from benchmarks.reporting import page, plots, results, scaling, training_table, words


def run(workers: int, batch: int, fp32: float, vote: float, **more) -> dict:
    """A training of 10 steps an epoch on as many nodes as workers; seconds of its epochs."""
    methods = [bench_results.trained("fp32", (fp32, 0.5, 0.9))]
    methods.append(bench_results.trained("vote", (vote, 0.5, 0.9)))
    made = bench_results.training(*methods, workers=workers, **more)
    made["setup"].update(batch=batch, samples_per_step=batch * workers)
    on_nodes = {"mode": "allocation", "launcher": "srun", "why": "the job holds its nodes"}
    made["network"].update(on_nodes, nodes=workers, measured=None, interface=None, rate=None)
    made["network"]["bits_per_second"] = None
    return made


# Weak: 8 samples a worker. Strong: 16 samples of all workers.
WEAK = [run(1, 8, 1.0, 1.0), run(2, 8, 1.25, 1.0), run(4, 8, 2.0, 1.25)]
STRONG = [run(1, 16, 2.0, 2.0), run(4, 4, 1.0, 0.625)]


def points(shown: scaling.Scaling, method: str) -> list[tuple]:
    return [
        (point.workers, point.samples_per_second, point.efficiency)
        for point in shown.points[method]
    ]


def test_efficiency_is_the_throughput_of_a_worker_beside_the_smallest_runs():
    weak, strong = scaling.scalings([STRONG[0], *reversed(WEAK), STRONG[1]])
    assert (weak.kind, strong.kind) == ("weak", "strong")
    assert points(weak, "fp32") == [(1, 80.0, 1.0), (2, 128.0, 0.8), (4, 160.0, 0.5)]
    assert points(weak, "vote") == [(1, 80.0, 1.0), (2, 160.0, 1.0), (4, 256.0, 0.8)]
    # Two workers with batches of 8 take 16 samples a step as well.
    assert points(strong, "fp32") == [(1, 80.0, 1.0), (2, 128.0, 0.8), (4, 160.0, 0.5)]
    assert points(strong, "vote") == [(1, 80.0, 1.0), (2, 160.0, 1.0), (4, 256.0, 0.8)]
    assert [point.speedup for point in weak.points["vote"]] == [1.0, 1.25, 1.6]


def test_what_does_not_belong_together_is_not_compared():
    other_batch, other_model = run(2, 6, 1, 1), run(2, 8, 1, 1)
    other_model["setup"]["model_text"] = "another network"
    two_a_node = run(4, 8, 1, 1)
    two_a_node["network"]["nodes"] = 2
    emulated = bench_results.training(bench_results.trained("fp32", (1.0, None, None)), workers=2)
    found = scaling.scalings([WEAK[0], other_batch, other_model, two_a_node, emulated])
    assert found == []


def test_the_newest_of_equal_runs_counts():
    again = run(2, 8, 5.0, 1.0, started="2024-03-01T12:00:00+00:00")
    (weak,) = scaling.scalings([again, *WEAK[:2]])
    assert points(weak, "fp32")[1] == (2, 32.0, 0.2)


def test_the_report_has_table_and_plot_of_the_scaling(tmp_path: Path):
    shown = page.report([*WEAK, *STRONG])
    html = page.render(shown)
    assert "Weak scaling: a network of 9 weights on Some &lt;Data&gt;, 8 samples a worker" in html
    names = [name for name, _ in shown.plots]
    assert "efficiency-weak-1" in names
    assert "efficiency-strong-1" in names
    weak = shown.scalings[0]
    assert weak.columns[-2:] == ["efficiency", "speed-up"]
    assert weak.rows[2] == ["Horovod fp32", "4", "4", "160", "2.00", "50%", "1.00 x"]
    assert weak.ours == [False] * 3 + [True] * 3


def test_the_report_reads_and_prints_results_of_an_allocation(tmp_path: Path):
    folders = []
    for number, result in enumerate(WEAK):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        results.save(folders[-1], result)
    with (tmp_path / "said").open("w") as file:
        given = report.parse([*map(str, folders), "--out", str(tmp_path / "report")])
        report.run(given, Console(file=file, width=170))
    said = (tmp_path / "said").read_text()
    assert "a network of 9 weights on Some <Data>, 4 workers, 4 nodes of a cluster" in said
    assert "Weak scaling" in said
    assert plots.plots_across(WEAK)
    assert (tmp_path / "report" / "efficiency-weak-1.png").stat().st_size > 1000


def test_an_allocation_in_words():
    assert words.place_text(WEAK[0]) == "1 node, 1 workers"
    assert words.network_text(WEAK[2]) == "4 nodes of a cluster, ranks started by srun"


def test_other_programs_share_a_node_with_its_own_workers_alone():
    two_a_node = run(4, 8, 10.0, 10.0)
    two_a_node["network"]["nodes"] = 2
    # Of 16 processor seconds of a machine in 10 s its 2 workers used 4 each.
    assert training_table.other_cores(two_a_node) == pytest.approx(0.8)


@pytest.fixture
def job(monkeypatch):
    def describe(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"HVD_SIGN_BENCH_{name}", value)

    for name in ("LAUNCH", "NODES", "LAUNCHER", "INTERFACE"):
        monkeypatch.delenv(f"HVD_SIGN_BENCH_{name}", raising=False)
    return describe


def test_ranks_of_an_allocation_are_started_as_it_says(job):
    job(LAUNCH="srun --mpi=pmix 'a b'", NODES="2", INTERFACE="ib0")
    with launch.network("allocation", 2, "1gbit") as network:
        assert network.command(["python", "-c", "0"]) == [
            *("srun", "--mpi=pmix", "a b", "python", "-c", "0")
        ]
        assert network.describe() == {
            "mode": "allocation",
            "workers": 2,
            "launcher": "srun",
            "why": "the job holds its nodes",
            "rate": None,
            "bits_per_second": None,
            "measured": None,
            "interface": "ib0",
            "nodes": 2,
        }
    job(LAUNCHER="mpirun")
    with launch.network("allocation", 4, "1gbit") as network:
        assert network.launcher == "mpirun"
        assert network.interface is None  # two workers share its counter
    assert allocation.workers_of_a_host("allocation", 4) == 2
    assert allocation.workers_of_a_host("loopback", 4) == 4


@pytest.mark.parametrize(
    ("variables", "workers", "sentence"),
    [
        ({}, 2, "HVD_SIGN_BENCH_LAUNCH is not set: run it in a job of slurm/"),
        ({"LAUNCH": "srun"}, 2, "a multiple of HVD_SIGN_BENCH_NODES, got 2 and ''"),
        ({"LAUNCH": "srun", "NODES": "2"}, 3, "HVD_SIGN_BENCH_NODES, got 3 and '2'"),
        ({"LAUNCH": "srun", "NODES": "0"}, 2, "HVD_SIGN_BENCH_NODES, got 2 and '0'"),
        ({"LAUNCH": "srun", "NODES": "1"}, 0, "HVD_SIGN_BENCH_NODES, got 0 and '1'"),
    ],
)
def test_an_allocation_that_cannot_be_used(job, variables, workers, sentence):
    job(**variables)
    with pytest.raises(BenchError, match=r"--network allocation") as refused:
        launch.check_launcher("allocation", workers, None)
    assert sentence in str(refused.value)


def test_elsewhere_one_worker_is_refused():
    with pytest.raises(LaunchError, match="expected 2 or more, got 1"):
        launch.check_launcher("loopback", 1, None)
