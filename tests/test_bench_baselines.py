"""The baselines and the checks of the allreduce benchmark, against values worked out by hand."""

from __future__ import annotations

import launch as test_launch
import pytest

torch = pytest.importorskip("torch", minversion="2.1")
pytest.importorskip("horovod")

from benchmarks.methods.baselines import BASELINES
from benchmarks.methods.baselines.base import Baseline
from benchmarks.methods.catalogue import METHODS
from benchmarks.ranks.pytorch import allreduce, contests
from benchmarks.ranks.pytorch.checks import adasum_weights, right_votes, verdicts


class Bucket:
    """As much of a GradBucket as a baseline looks at."""

    def __init__(self, values: list[float], parameters: list[object], index: int = 0) -> None:
        self._values = torch.tensor(values)
        self._parameters, self._index = parameters, index

    def buffer(self):
        return self._values

    def parameters(self):
        return self._parameters

    def index(self):
        return self._index


def decoded(baseline: Baseline, message, count: int) -> list[float]:
    total = torch.zeros(count)
    baseline.add(message, total)
    return total.tolist()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("count", [1, 7, 512, 513, 10_000])
def test_messages_are_as_long_as_the_formula_says(name: str, count: int) -> None:
    message = BASELINES[name](0).encode(torch.randn(count))
    assert message.dtype == torch.uint8
    assert len(message) == METHODS[name].payload(2, [(count,)])


def test_signs_as_bytes() -> None:
    baseline = BASELINES["sign-bytes"](0)
    total = torch.zeros(4)
    for signal in ([3.0, -1, 0, 5], [1.0, -2, 0, -5], [-9.0, 4, -1, 0]):
        baseline.add(baseline.encode(torch.tensor(signal)), total)
    assert total.tolist() == [1, -1, -1, 0]
    assert baseline.combine(total, 3).tolist() == [1, -1, -1, 0]


def test_one_bit_average_and_what_it_keeps() -> None:
    baseline, parameters = BASELINES["onebit-average"](0), [object()]
    first = Bucket([1.0, -2, 0, 5], parameters)
    # Mean magnitude 2; what was left out: 1 - 2, -2 + 2, 0 - 2, 5 - 2.
    assert decoded(baseline, baseline.message(first), 4) == [2, -2, 2, 2]
    # 0 + (-1, 0, -2, 3) has mean magnitude 1.5; 0 counts as positive.
    second = Bucket([0.0, 0, 0, 0], parameters)
    assert decoded(baseline, baseline.message(second), 4) == [-1.5, 1.5, -1.5, 1.5]
    assert first.buffer().tolist() == [1, -2, 0, 5]
    assert baseline.combine(torch.tensor([3.0, -6]), 3).tolist() == [1, -2]


def test_a_bucket_that_is_laid_out_anew_begins_without_a_residual() -> None:
    baseline = BASELINES["onebit-average"](0)
    old, other = [object()], [object()]
    baseline.message(Bucket([1.0, 3], old))
    assert decoded(baseline, baseline.message(Bucket([4.0, -4], other)), 2) == [4, -4]
    baseline.message(Bucket([1.0, 3], old, index=1))
    # 2 + (1 - 2), 2 + (3 - 2)
    assert decoded(baseline, baseline.message(Bucket([2.0, 2], old, index=1)), 2) == [2, 2]
    assert baseline._residuals[1][1].tolist() == [-1, 1]


def test_top_one_per_cent_and_what_it_keeps() -> None:
    baseline, parameters = BASELINES["topk"](0), [object()]
    values = [0.5] * 200
    values[17], values[150], values[3] = -4.0, 3.0, 2.0
    sent = decoded(baseline, baseline.message(Bucket(values, parameters)), 200)
    assert {row: value for row, value in enumerate(sent) if value} == {17: -4.0, 150: 3.0}
    # 2 + 2 and 0.5 + 0.5 are left; of what was sent nothing.
    sent = decoded(baseline, baseline.message(Bucket([2.0] * 4 + [0.5] * 196, parameters)), 200)
    assert {row: value for row, value in enumerate(sent) if value} == {3: 4.0, 0: 2.5} or {
        row: value for row, value in enumerate(sent) if value
    } in ({3: 4.0, 1: 2.5}, {3: 4.0, 2: 2.5})


def test_qsgd_on_its_levels_is_exact() -> None:
    baseline = BASELINES["qsgd"](0)
    # Norm 5 in the first block; the second is all zero, the third has one value.
    values = torch.zeros(1025)
    values[0], values[511], values[1024] = 5.0, 0.0, -2.0
    assert decoded(baseline, baseline.encode(values), 1025) == values.tolist()


def test_qsgd_rounds_to_a_level_beside_and_right_in_the_mean() -> None:
    baseline = BASELINES["qsgd"](0)
    values = torch.linspace(-1, 1, 300)
    level = float(values.norm()) / 127
    rounds = torch.tensor([decoded(baseline, baseline.encode(values), 300) for _ in range(400)])
    assert ((rounds - values).abs() < level * 1.0001).all()
    steps = rounds / level
    assert (steps - steps.round()).abs().max() < 1e-3
    # Half a level is the largest deviation of one rounding: 6 of them for a mean of 400.
    assert ((rounds.mean(0) - values).abs() < 6 * 0.5 * level / 20).all()
    assert (rounds[0] != rounds[1]).any()


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("vote", [True, True, False, True, False]),
        ("vote-zero", [True, True, False, False, True]),
        ("vote-positive", [True, True, False, False, False]),
        ("sign-bytes", [True, True, False, False, True]),
    ],
)
def test_which_verdicts_are_right(name: str, right: list[bool]) -> None:
    every = torch.tensor([[1.0, -1, 1, 2, 2], [3.0, -2, 1, -1, -1]], dtype=torch.float64)
    got = torch.tensor([1.0, -1, -1, -1, 0], dtype=torch.float64)
    assert right_votes(METHODS[name], got, every).tolist() == right


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("vote", [True, True, True, False]),
        ("vote-positive", [True, True, False, False]),
        ("vote-zero", [False, True, False, False]),
    ],
)
def test_zeros_are_cast_as_the_policy_says(name: str, right: list[bool]) -> None:
    """Three ranks, one of which holds a zero; the others disagree or are both negative."""
    every = torch.tensor([[0.0, 0, 0, 0], [1, -1, 1, -1], [-1, -1, -1, -1]], dtype=torch.float64)
    got = torch.tensor([1.0, -1, -1, 0], dtype=torch.float64)
    every[2, 3] = -2
    assert right_votes(METHODS[name], got, every).tolist() == right


def test_verdicts_of_another_scale_than_the_median_are_wrong() -> None:
    """Of four ranks with mean absolute signals 3, 0, 1 and 2 the median is 2, without the zero."""
    sizes = torch.tensor([3.0, 0, 1, 2], dtype=torch.float64)
    got = torch.tensor([2.0, -2, 0, 2.0001, 1.5, -3, 2 + 1e-6], dtype=torch.float64)
    found = verdicts(got, sizes)
    assert found[[0, 1, 2, 6]].tolist() == [1, -1, 0, 1]
    every = torch.ones(3, 7, dtype=torch.float64)
    every[:, [1, 5]] = -1
    right = right_votes(METHODS["ef_sign"], found, every).tolist()
    assert right == [True, True, False, False, False, False, True]
    # The lower middle one of an even number.
    assert verdicts(torch.tensor([1.0]), torch.tensor([5.0, 1, 4, 0.5])).tolist() == [1]


def test_what_adasum_makes_of_vectors() -> None:
    def weights(*vectors: tuple[float, ...]) -> list[float]:
        rows = torch.tensor(vectors, dtype=torch.float64)
        return adasum_weights(rows @ rows.T).tolist()

    assert weights((2, 0), (0, 3)) == [1, 1]  # orthogonal: the sum
    assert weights((2, 1), (2, 1)) == [0.5, 0.5]  # the same: the mean
    assert weights((1, 0), (1, 1)) == [0.5, 0.75]  # 1 - 1 / (2 x 1), 1 - 1 / (2 x 2)
    assert weights((2, 0), (2, 0), (0, 1), (0, 1)) == [0.5] * 4


def test_a_model_hands_out_the_gradients_it_was_given() -> None:
    flat = torch.arange(10.0)
    model = contests.Given(flat, [(2, 3), (4,)])
    model().backward()
    first, second = (parameter.grad for parameter in model.parameters())
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.tolist() == [6, 7, 8, 9]


def test_hooks_take_turns_only_where_memory_allows() -> None:
    chosen = [METHODS[name] for name in ("fp32", "ddp", "vote", "qsgd")]
    fp32, ddp, vote, qsgd = chosen
    # Two hooks with buckets and a residual each: 4 x 64 MiB fill 256 MiB.
    assert allreduce.together(chosen, 64 << 20) == [chosen]
    assert allreduce.together(chosen, 65 << 20) == [[fp32, vote], [ddp], [qsgd]]
    assert allreduce.together([ddp], 1 << 30) == [[ddp]]


def test_hooks_on_real_ranks(program) -> None:
    outcome = program("hooks", test_launch.mpirun(3), limit=150)
    assert outcome.output.count("a rank is done") == 3
