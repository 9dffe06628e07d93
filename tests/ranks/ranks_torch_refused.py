"""Whatever a single vote's arguments are wrong in is told to all ranks, and later votes work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import plain

GOOD = torch.full((70,), -2.0)


def row_of(tensor: object, form: str) -> object:
    return [tensor] if form.startswith("grouped") else tensor


FORMS = (
    "allreduce",
    "allreduce_",
    "allreduce_async",
    "allreduce_async_",
    "grouped_allreduce",
    "grouped_allreduce_",
    "grouped_allreduce_async",
    "grouped_allreduce_async_",
)
NO_TENSORS = {
    "expected a torch.Tensor, got NoneType": lambda: None,
    "expected a torch.Tensor, got float": lambda: 2.0,
    "expected a torch.Tensor, got ndarray": lambda: np.ones(70, np.float32),
    "a vote needs a dense tensor, got one of layout torch.sparse_coo": lambda: torch.eye(
        8
    ).to_sparse(),
    "a vote needs a dense tensor, got one of layout torch.sparse_csr": lambda: torch.eye(
        8
    ).to_sparse_csr(),
    "a vote needs a dense tensor, got a nested one": lambda: torch.nested.nested_tensor(
        [torch.ones(3), torch.ones(4)]
    ),
    "a vote needs a tensor with numbers, got one on device 'meta'": lambda: torch.ones(
        70, device="meta"
    ),
    "expected one of float32, float64, float16, bfloat16, got complex64": lambda: torch.ones(
        70, dtype=torch.complex64
    ),
}
NO_ROOM = {
    "got shape (70,) with strides (0,); give it a clone()": lambda: torch.ones(1).expand(70),
    "got shape (3, 4) with strides (2, 1); give it a clone()": lambda: torch.ones(9).as_strided(
        (3, 4), (2, 1)
    ),
}
MISTAKES = {
    "postscale_factor: expected a number, got 'x'": {"postscale_factor": "x"},
    "prescale_factor: expected a number, got None": {"prescale_factor": None},
    "average: not allowed together with op, got True": {"average": True},
    "seed: expected an integer, got 1.5": {"seed": 1.5},
    "got an unexpected keyword argument 'colour'": {"colour": 1},
}


def refused(hvd, world, sentence: str, form: str, given: object, **mistakes: object) -> None:
    """The last rank calls with its mistake, others without: all are told, twice, and go on."""
    last = world.size - 1
    good = {"op": hvd.MajorityVote, "name": "wrong"}
    call, options = hvd.allreduce, good
    if world.rank == last:
        call, options = getattr(hvd, form), good | mistakes
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)) as caught:
            call(given if world.rank == last else GOOD, **options)
        assert sentence in str(caught.value)
        assert world.rank == last or f"refused on rank {last}: " in str(caught.value)
    # Unnamed, and under the name that was refused.
    for name in (None, "wrong"):
        got = hvd.allreduce(GOOD, op=hvd.MajorityVote, name=name)
        np.testing.assert_array_equal(plain(got), -1)


def result(hvd, form: str, tensor: torch.Tensor, **options: object) -> torch.Tensor:
    got = getattr(hvd, form)(row_of(tensor, form), op=hvd.MajorityVote, **options)
    got = hvd.synchronize(got) if "async" in form else got
    return got[0] if form.startswith("grouped") else got


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_tensor_of_numbers(hvd, world, form):
    for sentence, make in NO_TENSORS.items():
        refused(hvd, world, sentence, form, row_of(make(), form))


@pytest.mark.parametrize("form", FORMS)
def test_no_room_for_a_verdict_in_place(hvd, world, form):
    for sentence, make in NO_ROOM.items():
        if form.endswith("_"):
            refused(hvd, world, sentence, form, row_of(make(), form))
        else:
            np.testing.assert_array_equal(plain(result(hvd, form, make())), 1)


@pytest.mark.parametrize("form", FORMS)
def test_other_arguments(hvd, world, form):
    for sentence, mistakes in MISTAKES.items():
        refused(hvd, world, sentence, form, row_of(GOOD.clone(), form), **mistakes)
    given = row_of(GOOD.clone(), form)
    refused(hvd, world, "ties: only a vote has such options", form, given, op=hvd.Sum, ties="zero")


@pytest.mark.parametrize("form", ["allreduce", "grouped_allreduce"])
def test_contradictions(hvd, world, form):
    for sentence, op, compression in (
        ("packs ballots, which need", hvd.Sum, hvd.Compression.sign),
        ("sends ballots; expected", hvd.MajorityVote, hvd.Compression.fp16),
    ):
        refused(hvd, world, sentence, form, row_of(GOOD, form), op=op, compression=compression)


def test_groups(hvd, world):
    whole = torch.ones(100)
    for sentence, group in {
        "tensors: expected a list of them, got 5": 5,
        "tensors: expected at least one, got none": [],
        "but 'wrong[0]' and 'wrong[1]' share some": [whole, whole],
        "but 'wrong[0]' and 'wrong[2]' share some": [whole[:60], torch.ones(3), whole[50:]],
    }.items():
        refused(hvd, world, sentence, "grouped_allreduce_", group)
    columns = whole.reshape(10, 10)
    for group in ([whole[:60], whole[60:]], [columns[:, :5], columns[:, 5:]]):
        whole.fill_(-3.0)
        hvd.grouped_allreduce_(group, op=hvd.MajorityVote)
        np.testing.assert_array_equal(plain(whole), -1)
    both = hvd.grouped_allreduce([whole, whole], op=hvd.MajorityVote)
    np.testing.assert_array_equal(plain(both[1]), -1)


@pytest.mark.parametrize("form", FORMS)
def test_names_that_are_none(hvd, world, form):
    """On all ranks, for what the others call by another name is another call."""
    for name in (7, b"gradient", ("a",), "\ud800"):
        with pytest.raises((TypeError, ValueError), match="name: expected"):
            result(hvd, form, GOOD.clone(), name=name)
    np.testing.assert_array_equal(plain(result(hvd, form, GOOD.clone())), -1)


@pytest.mark.parametrize("shape", [(70,), (200, 300)])
def test_tensors_that_autograd_watches_take_the_verdict_in_place(hvd, world, shape):
    leaf = torch.nn.Parameter(torch.full(shape, -4.0))
    hvd.allreduce_(leaf, op=hvd.MajorityVote)
    np.testing.assert_array_equal(plain(leaf), -1)
    inner = (leaf * 3).t() if len(shape) == 2 else leaf * 3
    hvd.grouped_allreduce_([inner], op=hvd.MajorityVote)
    np.testing.assert_array_equal(plain(inner), -1)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_inference_mode(hvd, world, form):
    with torch.inference_mode():
        got = result(hvd, form, torch.full((300, 70), -2.0).t())
        np.testing.assert_array_equal(got.numpy(), -1)
