"""Reports from literal result files: every figure worked out by hand."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import overlap
from benchmarks.reporting import allreduce_table, results, training_table, words
from benchmarks.reporting.results import ResultError


def epoch(seconds: float, wait: float, payload: float, wire: float, accuracy: float) -> dict:
    return {
        "epoch": 0,
        "steps": 10,
        "seconds": seconds,
        "wait_seconds": wait,
        "payload_bytes": payload,
        "wire_bytes": wire,
        "cpu_seconds": 0.4 * seconds,
        "machine_seconds": 1.8 * seconds,
        "harness_seconds": 0.001 * seconds,
        "loss": 1.0,
        "accuracy": accuracy,
        "iterations": [60.0, 70.0],
        "stats": None,
    }


def method(name: str, label: str, source: str, epochs: list[dict]) -> dict:
    return {
        "name": name,
        "label": label,
        "votes": name == "vote",
        "optimizer": f"optimizer of {name}",
        "payload_source": source,
        "replicas_equal": True,
        "epochs": epochs,
    }


RESULT = {
    "schema_version": 2,
    "kind": "training",
    "started": "2024-02-29T12:00:00+00:00",
    "command": "python -m benchmarks.train",
    "versions": {"python": "3.11.7"},
    "machine": {"cpu": "A CPU", "cores": 2, "memory_bytes": 8 * 2**30, "load_before": 0.25},
    "network": {
        "mode": "cluster",
        "workers": 4,
        "launcher": "mpirun",
        "why": "asked for",
        "rate": "1gbit",
        "bits_per_second": 1e9,
        "measured": [0.96e9, 0.94e9],
        "interface": "eth0",
    },
    "setup": {
        "baseline": "fp32",
        "model_text": "a network",
        "data_text": "Some Data",
        "data_origin": "a shelf",
        "kind": "images",
        "masked": False,
        "epochs": 2,
        "steps": 10,
        "warmup": 3,
        "batches_per_iter": 5,
        "turns": "epoch",
        "target_accuracy": 0.7,
        "batch": 8,
        "samples_per_step": 32,
        "train_samples": 320,
        "test_samples": 100,
    },
    "methods": [
        method(
            "fp32",
            "plain",
            "ring formula",
            [epoch(4, 3, 60e6, 61e6, 0.5), epoch(6, 2, 60e6, 61e6, 0.75)],
        ),
        method(
            "vote",
            "voted",
            "counted",
            [epoch(2, 0.5, 2e6, 2.2e6, 0.4), epoch(2, 0.5, 2e6, 2.2e6, 0.7)],
        ),
    ],
}


def shown(result: dict) -> str:
    console = Console(width=140, record=True, quiet=True)
    console.quiet = False
    with console.capture() as captured:
        training_table.show(result, console)
    return captured.get()


def test_every_figure_of_the_summary() -> None:
    plain, voted = training_table.summarise(RESULT)
    # The throughputs 60 and 70 are 5 from their mean: 1.96 x 5.
    assert plain == training_table.Summary(
        *("plain", 5.0, 64.0, 9.8, None, 0.5, 6e6, 6.1e6, 1.0, 0.75, 10.0, 1.0, 1.0)
    )
    assert voted == training_table.Summary(
        *("voted", 2.0, 160.0, 9.8, None, 0.25, 2e5, 2.2e5, 1.0, 0.7, 4.0, 2.5, 30.0)
    )


def test_what_does_not_exchange_shows_what_is_exposed() -> None:
    result = copy.deepcopy(RESULT)
    alone = method("local", "alone", "formula", [epoch(1.5, 0, 0, 0, 0.5)])
    alone["epochs"][0].update(wait_seconds=None, accuracy=None)
    result["methods"].append(alone)
    plain, voted, lone = training_table.summarise(result)
    assert (plain.exposed, voted.exposed, lone.exposed) == (3.5, 0.5, 0.0)
    assert (lone.wait_share, lone.accuracy, lone.saving) == (None, None, None)
    text = " ".join(shown(result).split())
    assert "Exposed: the time of an epoch beyond" in text
    assert "It steps by" not in text
    alone["optimizer"] = "Adam on the mean gradient"
    text = " ".join(shown(result).split())
    assert "It steps by Adam: with fp32, vote, which do not, what their optimizer" in text


def test_the_table_shows_them_with_units() -> None:
    text = shown(RESULT)
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    cells = [cell.strip() for cell in rows["voted"].split("│")[2:-1]]
    sizes, ratios = ["200 kB", "220 kB"], ["2.50 x", "30.0 x"]
    assert cells == ["2.00", "160 ± 9.8", "25%", *sizes, "1.000", "70.00%", "4.0 s", *ratios]


def test_the_notes_say_what_was_done() -> None:
    text = " ".join(shown(RESULT).split())
    assert "a network on Some Data, 4 workers, 1 Gbit/s emulated" in text
    assert "measured 940 Mbit/s" not in text
    assert "measured 0.94 Gbit/s" in text
    assert "voted: optimizer of vote." in text
    assert "A CPU, 2 cores, 8 GiB, load 0.25" in text
    assert "Other programs used 0.2 cores meanwhile." in text  # 1.8 - 4 x 0.4
    assert "0.10% at most is the benchmark's own" in text
    assert "WARNING" not in text


def test_the_notes_tell_the_learning_rates() -> None:
    text = " ".join(shown(RESULT).split())
    assert "Learning rates fall linearly to zero over the training." in text
    rising = copy.deepcopy(RESULT)
    rising["setup"]["rise"] = 0.125
    text = " ".join(shown(rising).split())
    assert (
        "Learning rates rise linearly over the first 12.5 % of the training, then fall linearly to "
        "zero."
    ) in text


def test_a_busy_machine_makes_the_times_doubtful() -> None:
    result = copy.deepcopy(RESULT)
    for trained in result["methods"]:
        for one in trained["epochs"]:
            one["cpu_seconds"] = 0.3 * one["seconds"]
    assert training_table.other_cores(result) == pytest.approx(0.6)
    assert "WARNING: the machine was busy with other programs" in shown(result)


def test_weights_that_differ_are_not_hidden() -> None:
    result = copy.deepcopy(RESULT)
    result["methods"][1]["replicas_equal"] = False
    assert "WARNING: the workers' weights differ at the end: voted." in shown(result)


def test_loopback_has_no_wire_and_a_lone_method_no_ratio() -> None:
    result = copy.deepcopy(RESULT)
    result["network"] = {
        **RESULT["network"],
        "mode": "loopback",
        "rate": None,
        "measured": None,
        "interface": None,
    }
    result["methods"] = result["methods"][1:]
    (voted,) = training_table.summarise(result)
    assert (voted.wire, voted.speedup, voted.saving) == (None, None, None)
    assert "loopback: no network was emulated" in shown(result)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (9730236, "9.73 MB"), (2.5e9, "2.5 GB")]
)
def test_sizes_are_decimal(size: float, text: str) -> None:
    assert words.size_text(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(1024, "1 KiB"), (3 << 20, "3 MiB"), (1 << 30, "1 GiB"), (102400000, "102 MB"), (4, "4 B")],
)
def test_tensors_are_as_large_as_was_asked_for(size: int, text: str) -> None:
    assert words.tensor_text(size) == text


def test_a_result_comes_back_from_its_directory(tmp_path: Path) -> None:
    folder = results.create_directory(tmp_path, "train x/1gbit")
    assert folder.name.endswith("-train-x-1gbit")
    again = results.create_directory(tmp_path, "train x/1gbit")
    assert again.name == folder.name + "-2"
    results.save(folder, RESULT)
    assert results.load(folder) == RESULT


def test_a_result_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**RESULT, "schema_version": 99}))
    with pytest.raises(ResultError, match="expected schema_version 2, got 99"):
        results.load(path)
    path.write_text("[]")
    with pytest.raises(ResultError, match="got None"):
        results.load(path)
    path.write_text("{")
    with pytest.raises(ResultError, match="cannot read"):
        results.load(tmp_path)


def test_a_new_result_says_what_it_was_measured_with() -> None:
    made = results.new_result("training")
    assert {"python", "mpi", "hvd_sign", "torch", "horovod", "git"} <= set(made["versions"])
    assert made["machine"]["cores"] >= 1
    assert made["schema_version"] == results.SCHEMA_VERSION


def test_every_figure_of_the_allreduce_table() -> None:
    def raw(name: str, seconds: list[float], payload: float) -> dict:
        figures = {"seconds": seconds, "payload_bytes": payload, "wire_bytes": 2 * payload}
        return {"size": 4096, "method": name, "label": name, "wrong": None, **figures}

    measured = [
        raw("fp32", [0.5, 0.2, 0.4], 6000),
        raw("fp16", [0.2, 0.3, 0.1], 3000),
        {**raw("sign-bytes", [0.4, 0.4, 0.4], 3072), "votes": True, "wrong": 0},
        {**raw("vote", [0.1, 0.3, 0.1], 125), "votes": True, "wrong": 7},
    ]
    setup = {"memory_bytes_per_second": 8e6, "cycle_time": 1.0}
    result = {"network": RESULT["network"], "setup": setup, "measured": measured}
    plain, half, as_bytes, voted = allreduce_table.summarise(result)
    # In memory: 2 x (4096 + 6000) bytes at 8 MB/s.
    assert plain == allreduce_table.Row(
        *(4096, "fp32", 0.4, 0.2, 0.5, 10240, 15360, 6e3, 12e3, 48e-6, 2.524e-3, None, 1.0, None)
    )
    assert (half.speedup, half.over_best) == (2.0, None)
    assert (as_bytes.speedup, as_bytes.over_best) == (1.0, None)
    assert (voted.median, voted.algbw, voted.busbw) == (0.1, 40960, 61440)
    assert (voted.wire_limit, voted.memory_limit) == (1e-6, 1.05525e-3)
    assert (voted.wire, voted.speedup, voted.over_best) == (250, 4.0, 2.0)
    console = Console(width=200, file=io.StringIO())
    console.print(allreduce_table.table(result))
    rows = [line for line in console.file.getvalue().splitlines() if "4 KiB" in line]
    cells = [[cell.strip() for cell in row.split("│")[1:-1]] for row in rows]
    assert cells[0][-6:] == ["12 kB", "0.048", "2.524", "-", "1.00 x", "-"]
    assert cells[3][-6:] == ["250 B", "0.001", "1.055", "7", "4.00 x", "2.00 x"]


def test_every_figure_of_the_overlap_table() -> None:
    row = {"method": "vote", "label": "majority vote", "alone": [0.1, 0.2], "backward": [0.4] * 2}
    measured = [{**row, "exposed": [0.01, 0.05]}]
    setup = {"layers": 5, "coordinates": 1000, "cycle_time": 20.0}
    result = {"network": RESULT["network"], "setup": setup, "measured": measured}
    console = Console(width=200, file=io.StringIO())
    console.print(overlap.table(result))
    text = console.file.getvalue()
    assert "5 layers of 1,000 weights in all" in text
    assert "HOROVOD_CYCLE_TIME 20 ms" in text
    (row,) = [line for line in text.splitlines() if "majority vote" in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["majority vote", "150", "400", "30", "10", "50", "20.0%"]


def test_a_network_without_a_limit_is_called_so() -> None:
    network = {"mode": "cluster", "bits_per_second": None, "measured": [2e9, 3e9]}
    text = words.network_text({"network": network})
    assert text == "no limit between network namespaces (measured 2 Gbit/s)"
