"""Plots of literal results: what they show is read back from their figures."""

from __future__ import annotations

from pathlib import Path

import bench_results as literal
import pytest
from matplotlib.axes import Axes

from benchmarks.reporting import plots
from benchmarks.reporting.plots import training
from benchmarks.reporting.plots.style import Plot, look

TRAINING = literal.training(
    literal.trained("fp32", (6.0, 3.0, 0.5), (4.0, 2.0, 0.75)),
    literal.trained("vote", (3.0, 1.0, 0.4), (2.0, 0.5, 0.625)),
    literal.trained("ddp", (5.0, None, 0.5), (4.0, None, 0.5)),
    literal.trained("local", (2.0, None, None), (2.0, None, None)),
)


def named(drawn: list[Plot], name: str) -> Axes:
    (found,) = [plot for plot in drawn if plot.name == name]
    return found.figure.axes[0]


def curves(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in line.get_xydata()]
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def test_time_against_size_with_its_limits() -> None:
    result = literal.allreduce({"fp32": [0.004, 0.008], "vote": [0.001, 0.002]})
    axes = named(plots.plots_of([result]), "allreduce")
    found = curves(axes)
    assert found["Horovod fp32"] == [(1024, 4.0), (2048, 8.0)]
    assert found["majority vote"] == [(1024, 1.0), (2048, 2.0)]
    # 8 bits x 2048 / 32 bytes at 1 Gbit/s: 512 ns; all of it, 2048 bytes: 16,384 ns.
    wire = found["limit of the wire, vote"], found["limit of the wire, fp32"]
    assert wire[0] == [(1024, pytest.approx(2.56e-4)), (2048, pytest.approx(5.12e-4))]
    assert wire[1][1] == (2048, pytest.approx(0.016384))
    # 2 x (2048 + 64) bytes at 1e9 bytes/s.
    assert found["limit of memory, vote"][1] == (2048, pytest.approx(0.004224))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1 KiB", "2 KiB"]


def test_without_a_rate_there_is_no_limit_of_the_wire() -> None:
    result = literal.allreduce({"fp32": [1, 2], "vote": [1, 2]}, rate=None)
    found = curves(named(plots.plots_of([result]), "allreduce"))
    assert {label for label in found if "limit" in label} == {
        "limit of memory, fp32",
        "limit of memory, vote",
    }


def test_speed_up_against_size() -> None:
    result = literal.allreduce({"fp32": [0.004, 0.008], "vote": [0.008, 0.002]})
    found = curves(named(plots.plots_of([result]), "allreduce-speedup"))
    assert found["majority vote"] == [(1024, 0.5), (2048, 4.0)]
    alone = literal.allreduce({"vote": [0.008, 0.002]})
    assert [plot.name for plot in plots.plots_of([alone])] == ["allreduce"]


def test_one_size_is_drawn_as_bars() -> None:
    result = literal.allreduce({"fp32": [0.25], "vote": [0.125]})
    (plot,) = plots.plots_of([result])
    axes = plot.figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [250, 125]
    assert [text.get_text() for text in axes.texts] == ["250 ms", "125 ms"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "Horovod fp32",
        "majority vote",
    ]


def test_speed_up_against_bandwidth_needs_two_rates() -> None:
    slow = literal.allreduce({"fp32": [1.0, 8.0], "vote": [1.0, 0.5]}, rate=1e8)
    fast = literal.allreduce({"fp32": [1.0, 3.0], "vote": [1.0, 1.5]})
    loopback = literal.allreduce({"fp32": [1.0, 1.0], "vote": [1.0, 1.0]}, None, 4, "loopback")
    axes = named(plots.plots_across([fast, slow, loopback]), "bandwidth-4-pytorch")
    # At the larger size, over the bandwidth that was measured: 0.9 of the rate.
    assert curves(axes)["majority vote"] == [(9e7, 16.0), (9e8, 2.0)]
    assert plots.plots_across([fast, loopback]) == []


def test_of_equal_measurements_the_newest_counts() -> None:
    old = literal.allreduce({"fp32": [1.0], "vote": [1.0]}, 1e8, started="2024-01-01T00:00:00")
    new = literal.allreduce({"fp32": [1.0], "vote": [0.5]}, 1e8, started="2024-01-02T00:00:00")
    other = literal.allreduce({"fp32": [1.0], "vote": [0.25]}, 1e9)
    axes = named(plots.plots_across([new, old, other]), "bandwidth-4-pytorch")
    assert curves(axes)["majority vote"] == [(9e7, 2.0), (9e8, 4.0)]


def test_scaling_over_workers() -> None:
    calls = [
        literal.allreduce({"fp32": [0.01 * m], "vote": [0.001 * m]}, workers=m) for m in (2, 4, 8)
    ]
    axes = named(plots.plots_across(calls), "scaling-allreduce-1")
    assert curves(axes)["Horovod fp32"] == [(2, 20.0), (4, 40.0), (8, 80.0)]
    # 10 steps of 8 samples a worker in 5 seconds.
    trainings = [
        literal.training(literal.trained("vote", (5.0, 1.0, 0.5)), workers=m) for m in (4, 2)
    ]
    axes = named(plots.plots_across(trainings), "scaling-training-1")
    assert curves(axes)["majority vote"] == [(2, 32.0), (4, 64.0)]
    assert plots.plots_across(trainings[:1]) == []


def test_accuracy_against_time_leaves_out_what_has_none() -> None:
    axes = named(plots.plots_of([TRAINING]), "accuracy")
    assert curves(axes) == {
        "Horovod fp32: 75.0 %": [(6, 50), (10, 75)],
        "majority vote: 62.5 %": [(3, 40), (5, 62.5)],
        "DDP: 50.0 %": [(5, 50), (9, 50)],
    }
    stated = literal.training(literal.trained("vote", (1.0, 0.5, 0.5)))
    stated["setup"]["target_accuracy"] = 0.9
    lines = [line.get_ydata() for line in named(plots.plots_of([stated]), "accuracy").lines]
    assert [[float(y) for y in ys] for ys in lines] == [[50], [90, 90]]
    untested = literal.training(literal.trained("vote", (1.0, 0.5, None)))
    assert [plot.name for plot in plots.plots_of([untested])] == ["epoch-time"]


def test_what_an_epoch_is_made_of() -> None:
    fp32, vote, ddp, local = (training.share(one, TRAINING) for one in TRAINING["methods"])
    assert fp32 == (2.5, 2.5, {})
    assert vote[:2] == (1.75, 0.75)
    assert vote.phases == {
        "pack_seconds": 0.25,
        "exchange_seconds": 1.5,
        "tally_seconds": 0.125,
        "apply_seconds": 0.5,
    }
    assert ddp == (2.0, 2.5, {})  # 4.5 seconds, of which computing alone takes 2
    assert local == (2.0, 0.0, {})
    alone = literal.training(TRAINING["methods"][2])
    assert training.share(alone["methods"][0], alone) == (4.5, None, {})


def test_the_bars_are_these_figures() -> None:
    axes = named(plots.plots_of([TRAINING]), "epoch-time")
    widths = [bar.get_width() for bar in axes.patches]
    vote = [1.75, 0.75, 0.25, 1.5, 0.125, 0.5]
    assert widths == [2.5, 2.5, *vote, 2.0, 2.5, 2.0, 0.0]
    assert [text.get_text() for text in axes.texts] == ["5 s", "2.5 s", "4.5 s", "2 s"]
    assert axes.get_legend_handles_labels()[1] == ["pack", "exchange", "tally", "apply"]


def test_frameworks_are_told_apart() -> None:
    other = literal.training(literal.trained("vote", (1.0, 0.5, 0.9)), framework="tensorflow")
    found = curves(named(plots.plots_of([TRAINING, other]), "accuracy"))
    assert found["majority vote, TensorFlow: 90.0 %"] == [(1, 90)]
    assert "majority vote, PyTorch: 62.5 %" in found


def test_pictures_have_a_readable_size(tmp_path: Path) -> None:
    paths = plots.save(TRAINING, tmp_path)
    assert [path.name for path in paths] == ["accuracy.png", "epoch-time.png"]
    for path in paths:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(content[16:20], "big") >= 1000  # pixels across


def test_every_method_has_a_look_of_its_own() -> None:
    from benchmarks.methods.catalogue import METHODS

    looks = [look(name) for name in METHODS]
    assert len(set(looks)) == len(looks)
    assert look("signum").colour == look("vote").colour
    assert look("vote-of-a-later-version").colour == look("vote-zero").colour
