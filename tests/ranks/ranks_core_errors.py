"""Mistakes: one clear sentence, the same on every rank, and the next vote works."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI

import hvd_sign


@pytest.fixture
def here():
    """A communicator of the test's own, so that what one test breaks stays with it."""
    comm = MPI.COMM_WORLD.Dup()
    yield comm
    comm.Free()


def works_afterwards(comm: MPI.Intracomm) -> None:
    got = hvd_sign.allreduce(np.full(70, -2.0, dtype="float32"), comm=comm)
    np.testing.assert_array_equal(got, -1)


def refused_alike(here: MPI.Intracomm, array: np.ndarray, **options) -> str:
    """The message of the ValueError that every rank must raise alike."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - callers check the text
        hvd_sign.allreduce(array, comm=here, **options)
    messages = here.allgather(str(caught.value))
    assert len(set(messages)) == 1, f"the ranks say different things: {messages}"
    works_afterwards(here)
    return messages[0]


@pytest.mark.parametrize("argument", ["exchange", "ties", "scale"])
@pytest.mark.parametrize("value", ["median", "", 3], ids=repr)
def test_unknown_choice_names_the_known_ones(here, argument, value):
    known = {
        "exchange": ("sharded", "allgather"),
        "ties": ("coin", "zero", "positive"),
        "scale": ("none", "mean_abs"),
    }
    with pytest.raises(ValueError, match=argument) as caught:
        hvd_sign.allreduce(np.ones(3, dtype="float32"), comm=here, **{argument: value})
    for name in (*known[argument], str(value)):
        assert name in str(caught.value)
    works_afterwards(here)


@pytest.mark.parametrize("op", ["median", None, 3, "MajorityVote "], ids=str)
def test_unknown_op(here, op):
    with pytest.raises(ValueError, match="MajorityVote"):
        hvd_sign.allreduce(np.ones(3, dtype="float32"), op=op, comm=here)
    works_afterwards(here)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64", "int64", "U3", "O"])
def test_unsupported_dtype(here, dtype):
    with pytest.raises(TypeError, match="float32"):
        hvd_sign.allreduce(np.zeros(5, dtype=dtype), comm=here)
    works_afterwards(here)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "longdouble"])
def test_dtype_that_is_no_native_float_is_right_or_refused(here, dtype):
    signal = np.array([1.0, -2.0, 3.0, -4.0], dtype=dtype)
    try:
        got = hvd_sign.allreduce(signal, comm=here)
    except TypeError:
        works_afterwards(here)
    else:
        np.testing.assert_array_equal(got.astype("float64"), [1, -1, 1, -1])


@pytest.mark.ranks(2)
@pytest.mark.parametrize("exchange", ["sharded", "allgather"])
@pytest.mark.parametrize("odd_one", ["first", "last"])
def test_different_shapes(here, exchange, odd_one):
    odd = 0 if odd_one == "first" else here.size - 1
    array = np.ones(100 if here.rank == odd else 3000, dtype="float32")
    message = refused_alike(here, array, exchange=exchange, name="layer.weight")
    assert "layer.weight" in message
    assert "100" in message
    assert "3000" in message
    assert str(odd) in message


@pytest.mark.ranks(2)
def test_same_size_but_another_shape(here):
    shape = (4, 6) if here.rank else (6, 4)
    message = refused_alike(here, np.ones(shape, dtype="float32"), name="turned")
    assert "turned" in message


@pytest.mark.ranks(2)
def test_different_dtypes(here):
    array = np.ones(64, dtype="float64" if here.rank == 1 else "float32")
    message = refused_alike(here, array, name="mixed")
    for part in ("mixed", "float64", "float32", "1"):
        assert part in message


@pytest.mark.ranks(2)
@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("ties", ("coin", "zero")),
        ("ties", ("positive", "coin")),
        ("exchange", ("sharded", "allgather")),
        ("scale", ("none", "mean_abs")),
        ("seed", (0, 1)),
        ("step", (4, 5)),
    ],
)
def test_different_options(here, argument, values):
    option = {argument: values[min(here.rank, 1)]}
    message = refused_alike(here, np.ones(64, dtype="float32"), name="settings", **option)
    assert "settings" in message
    assert argument in message


@pytest.mark.ranks(2)
@pytest.mark.parametrize("odd_one", ["first", "last"])
@pytest.mark.parametrize("name", ["gradient", None])
@pytest.mark.parametrize("mistake", ["dtype", "op", "exchange", "ties", "step"])
def test_what_is_refused_on_one_rank_is_an_error_on_all(here, odd_one, name, mistake):
    odd = 0 if odd_one == "first" else here.size - 1
    good = np.ones(64, dtype="float32")
    options = {} if mistake == "dtype" else {mistake: -1}
    for _ in range(3):
        if here.rank == odd:
            bad = good.astype("int64") if mistake == "dtype" else good
            with pytest.raises((TypeError, ValueError), match="expected") as caught:
                hvd_sign.allreduce(bad, comm=here, name=name, **options)
            reason = str(caught.value)
        else:
            with pytest.raises(ValueError, match=rf"refused on rank {odd}: ") as caught:
                hvd_sign.allreduce(good, comm=here, name=name)
            reason = str(caught.value).partition(f"refused on rank {odd}: ")[2]
            assert name is None or f"allreduce {name!r}: " in str(caught.value)
        assert set(here.allgather(reason)) == {reason}
    works_afterwards(here)


@pytest.mark.parametrize("name", [7, b"gradient", ("a",), ["a"], "\ud800"], ids=repr)
def test_what_is_no_name(here, name):
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match="name: expected"):
            hvd_sign.allreduce(np.ones(3, dtype="float32"), comm=here, name=name)
    works_afterwards(here)


@pytest.mark.ranks(2)
def test_an_array_that_cannot_be_made_is_an_error_on_all(here):
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("no memory left")

    array = Broken() if here.rank == 1 else np.ones(3, dtype="float32")
    with pytest.raises((RuntimeError, ValueError), match="no memory left") as caught:
        hvd_sign.allreduce(array, comm=here, name="broken")
    assert here.rank == 1 or "refused on rank 1: RuntimeError: no memory left" in str(caught.value)
    works_afterwards(here)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("odd_one", ["first", "last"])
def test_a_call_after_a_refused_one_meets_the_others_next_call(here, odd_one):
    odd = 0 if odd_one == "first" else here.size - 1
    good = np.full(64, -3.0, dtype="float32")
    if here.rank == odd:
        for _ in range(2):
            with pytest.raises(TypeError, match="got int64"):
                hvd_sign.allreduce(good.astype("int64"), comm=here, name="again")
    else:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"array: expected one of float32, .* got int64"):
                hvd_sign.allreduce(good, comm=here, name="again")
    got = hvd_sign.allreduce(good, comm=here, name="again")
    np.testing.assert_array_equal(got, -1)


def test_what_is_refused_on_all_ranks_leaves_nothing_behind(here):
    for name in (None, "wrong"):
        for _ in range(5):
            with pytest.raises(TypeError, match="got int64"):
                hvd_sign.allreduce(np.ones(3, dtype="int64"), comm=here, name=name)
    works_afterwards(here)
    hvd_sign.allreduce(np.ones(3, dtype="float32"), comm=here, name="wrong")


def test_repeated_errors_leave_nothing_behind(here):
    for turn in range(10):
        if here.size > 1:
            refused_alike(here, np.ones(10 + here.rank, dtype="float32"), name=f"turn {turn}")
        else:
            works_afterwards(here)


def test_null_communicator():
    with pytest.raises((ValueError, TypeError), match="comm"):
        hvd_sign.allreduce(np.ones(3, dtype="float32"), comm=MPI.COMM_NULL)


@pytest.mark.parametrize("value", ["COMM_WORLD", 5, [0, 1]], ids=str)
def test_what_is_no_communicator(value):
    with pytest.raises((ValueError, TypeError), match="comm"):
        hvd_sign.allreduce(np.ones(3, dtype="float32"), comm=value)
