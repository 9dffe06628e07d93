"""What the training benchmark trains by: learning rates over time, and each method's optimizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("psutil")
pytest.importorskip("rich")
pytest.importorskip("torch")

from benchmarks import train
from benchmarks.data import IMAGES, Dataset, Split
from benchmarks.methods.catalogue import METHODS, SERVED
from benchmarks.training import plan, tasks
from benchmarks.training.schedule import share_of_rate
from benchmarks.training.tasks import Optimizer


@pytest.mark.parametrize(
    ("steps", "warmup", "shares"),
    [
        (4, 0, [1, 0.75, 0.5, 0.25]),
        (10, 0.2, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (4, 0.5, [0.5, 1, 1, 0.5]),
        # One step and a half of rising: the second is at the top already.
        (3, 0.5, [1 / 1.5, 1, 1 / 1.5]),
        (1, 0.1, [1]),
    ],
)
def test_rates_rise_then_fall_to_zero(steps: int, warmup: float, shares: list[float]) -> None:
    found = [share_of_rate(done, steps, warmup) for done in range(steps)]
    assert found == pytest.approx(shares)


def test_every_method_that_trains_has_an_optimizer_in_every_task() -> None:
    trained = [method for method in METHODS.values() if SERVED["training"](method)]
    for task in tasks.TASKS.values():
        for data in ("fashion-mnist", "digits", "anything"):
            for method in trained:
                optimizer = task.optimizer(data, method.recipe)
                assert optimizer.votes == method.votes, method.name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fp16", "SGD on the mean gradient, learning rate 0.1, momentum 0.9"),
        ("powersgd-2", "SGD on the mean gradient, learning rate 0.1, momentum 0.9"),
        ("local", "SGD on the mean gradient, learning rate 0.1, momentum 0.9"),
        ("vote", "SGD on the verdict, learning rate 0.0001, momentum 0.9"),
        ("vote-zero", "SGD on the verdict, learning rate 0.0001, momentum 0.9"),
        ("sign-bytes", "SGD on the verdict, learning rate 0.0001, momentum 0.9"),
        ("signum", "Signum (beta 0.9) on the verdict, learning rate 0.001"),
        (
            "lion",
            "Lion (betas 0.9 and 0.99) on the verdict, learning rate 0.001, weight decay 1",
        ),
        ("ef_sign", "SGD on the verdict, learning rate 0.03, momentum 0.9"),
        ("onebit", "SGD on the verdict, learning rate 0.03, momentum 0.9"),
    ],
)
def test_what_the_default_task_is_trained_by(name: str, text: str) -> None:
    task = tasks.task_of("cnn")
    assert str(task.optimizer("fashion-mnist", METHODS[name].recipe)) == text


def test_an_optimizer_in_words() -> None:
    assert str(tasks.task_of("gpt2").optimizer("", "mean")) == (
        "Adam on the mean gradient, learning rate 0.0003"
    )
    assert str(Optimizer("lion", 1e-4, weight_decay=0.5)) == (
        "Lion (betas 0.9 and 0.99) on the verdict, learning rate 0.0001, weight decay 0.5"
    )


@pytest.fixture
def planned(monkeypatch) -> Callable[..., plan.Plan]:
    def make(*arguments: str, name: str = "fashion-mnist") -> plan.Plan:
        split = Split(np.zeros((256, 1, 28, 28), np.uint8), np.zeros(256, np.int64))
        dataset = Dataset(name, "a title", "a shelf", IMAGES, 10, split, split)
        monkeypatch.setattr(plan.data, "load", lambda *wanted: dataset)
        line = ("--network", "loopback", "--methods", "fp32,signum,lion", *arguments)
        return plan.make_plan(train.parse(line))

    return make


def test_a_plan_has_schedule_recipes_and_target(planned: Callable[..., plan.Plan]) -> None:
    made = planned("--learning-rate", "lion=0.5")
    assert (made.config["rise"], made.setup["target_accuracy"]) == (0.1, 0.9)
    recipes = made.config["optimizers"]
    assert recipes["fp32"] == {
        **{"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0},
        "votes": False,
    }
    assert recipes["signum"] == {
        **{"kind": "signum", "learning_rate": 1e-3, "momentum": 0.0, "weight_decay": 0.0},
        "votes": True,
    }
    assert (recipes["lion"]["learning_rate"], recipes["lion"]["weight_decay"]) == (0.5, 1.0)
    made = planned("--warmup", "0", "--target-accuracy", "0.25")
    assert (made.config["rise"], made.setup["target_accuracy"]) == (0, 0.25)
    made = planned(name="folder")
    assert made.setup["target_accuracy"] is None
    assert made.config["optimizers"]["fp32"]["learning_rate"] == 0.05
