"""The allreduce family of the PyTorch binding by majority vote."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from helpers import DTYPES, EXCHANGES, TIES, expected, mean_abs, plain, same_everywhere, values

FORMS = ("allreduce", "allreduce_", "allreduce_async", "allreduce_async_")
GROUPED = tuple("grouped_" + form for form in FORMS)


def call(hvd, form: str, given, **options):
    """Any member of the family, waited for."""
    result = getattr(hvd, form)(given, op=hvd.MajorityVote, **options)
    return hvd.synchronize(result) if "async" in form else result


def signal(rank: int, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    tensor = values(seed + 31 * rank, *shape, dtype=dtype)
    tensor[values(seed + 77 * rank + 1, *shape) > 1] = 0
    return tensor


def wait_by_polling(hvd, handle) -> torch.Tensor:
    deadline = time.monotonic() + 20
    while not hvd.poll(handle):
        assert time.monotonic() < deadline, "poll never became true"
        time.sleep(0.001)
    return hvd.synchronize(handle)


@pytest.mark.runtime("horovod")
def test_superset_of_horovod(hvd):
    import horovod.torch as plain_hvd

    public = {name for name in dir(plain_hvd) if not name.startswith("_")}
    missing = public - set(dir(hvd))
    assert not missing
    assert hvd.Average is plain_hvd.Average or hvd.Average == plain_hvd.Average
    assert hvd.rank() == plain_hvd.rank()
    assert hvd.size() == plain_hvd.size()
    assert {"none", "fp16", "sign"} <= set(dir(hvd.Compression))


def test_ranks_are_the_launchers(hvd, world):
    assert (hvd.rank(), hvd.size()) == (world.rank, world.size)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forms_and_types(hvd, world, dtype, form, ties):
    for shape in [(300,), (), (1,), (5, 7, 3), (4097,)]:
        tensor = signal(world.rank, *shape, dtype=dtype)
        given = tensor.clone()
        want = expected(world, tensor, ties)
        got = call(hvd, form, given, ties=ties)
        want.check(plain(got))
        assert got.dtype == dtype
        assert got.shape == tensor.shape
        assert same_everywhere(world, got)
        if form.endswith("_"):
            assert got.data_ptr() == given.data_ptr()
            want.check(plain(given))
        else:
            np.testing.assert_array_equal(plain(given), plain(tensor))


@pytest.mark.parametrize("size", [300, 20_000])
@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_are_negated_later(hvd, world, form, size):
    """As the imaginary part of a conjugate is: memory, and a note that says negate."""
    tensor = signal(world.rank, size)
    want = expected(world, tensor)
    given = torch._neg_view(-tensor)
    assert given.is_neg()
    got = call(hvd, form, given)
    want.check(plain(got))
    want.check(plain(given if form.endswith("_") else got))


@pytest.mark.parametrize("name", [None, "a group"], ids=str)
@pytest.mark.parametrize("form", GROUPED)
def test_grouped(hvd, world, form, name):
    shapes = [(10,), (64, 3), (), (5000,)]
    tensors = [signal(world.rank, *shape, seed=i) for i, shape in enumerate(shapes)]
    given = [tensor.clone() for tensor in tensors]
    got = call(hvd, form, given, name=name)
    assert len(got) == len(tensors)
    for before, passed, after in zip(tensors, given, got, strict=True):
        want = expected(world, before)
        want.check(plain(after))
        assert same_everywhere(world, after)
        if form.endswith("_"):
            want.check(plain(passed))
        else:
            np.testing.assert_array_equal(plain(passed), plain(before))


@pytest.mark.parametrize("form", ["grouped_allreduce", "grouped_allreduce_"])
def test_grouped_types_may_differ(hvd, world, form):
    tensors = [signal(world.rank, 200, dtype=dtype, seed=i) for i, dtype in enumerate(DTYPES)]
    wanted = [expected(world, tensor, "zero") for tensor in tensors]
    for want, dtype, after in zip(
        wanted, DTYPES, call(hvd, form, tensors, ties="zero"), strict=True
    ):
        want.check(plain(after))
        assert after.dtype == dtype


def test_empty_tensors(hvd, world):
    for shape in [(0,), (3, 0)]:
        for form in FORMS:
            got = call(hvd, form, torch.empty(shape))
            assert got.shape == shape
    grouped = call(hvd, "grouped_allreduce", [torch.empty(0), torch.ones(3)])
    assert grouped[0].numel() == 0
    np.testing.assert_array_equal(plain(grouped[1]), 1)


@pytest.mark.parametrize("form", FORMS)
def test_memory_formats_may_differ_across_ranks(hvd, world, form):
    """The verdict belongs to the element, however a rank stores the tensor."""
    dense = values(17 + world.rank, 3, 8, 5, 6)
    formats = [torch.contiguous_format, torch.channels_last]
    given = dense.clone(memory_format=formats[world.rank % 2])
    want = expected(world, dense, "zero")
    want.check(plain(call(hvd, form, given, ties="zero")))
    if not form.endswith("_"):
        turned = values(3 + world.rank, 40, 90).t()
        want = expected(world, turned, "zero")
        want.check(plain(call(hvd, form, turned, ties="zero")))


@pytest.mark.parametrize("ties", TIES)
def test_exchanges_agree_bit_for_bit(hvd, world, ties):
    tensor = signal(world.rank, 20_000)
    results = [
        call(hvd, "allreduce", tensor, name=f"{ties} by exchange {e}", ties=ties, exchange=e)
        for e in EXCHANGES
    ]
    certain = expected(world, tensor, ties).certain
    first, second = (plain(result)[certain] for result in results)
    np.testing.assert_array_equal(first, second)


@pytest.mark.ranks(2, 2)
def test_coins_change_with_the_seed_and_from_call_to_call(hvd, world):
    tie = torch.full((20_000,), 1.0 if world.rank else -1.0)
    calls = [{"seed": 1}, {"seed": 2}, {"seed": 1}, {}]
    results = [call(hvd, "allreduce", tie, name="tied", **options) for options in calls]
    for i, first in enumerate(results):
        assert same_everywhere(world, first)
        assert abs(plain(first).mean()) < 0.04
        for second in results[:i]:
            assert abs((plain(first) * plain(second)).mean()) < 0.04


@pytest.mark.parametrize("form", FORMS)
def test_scale_mean_abs(hvd, world, form):
    tensor = values(world.rank, 5000) * (1 + world.rank)
    want, scale = expected(world, tensor, "zero"), mean_abs(world, tensor)
    got = call(hvd, form, tensor.clone(), ties="zero", scale="mean_abs")
    want.check(plain(got), scale, rtol=2e-6)


@pytest.mark.parametrize("form", [*FORMS, *GROUPED])
def test_prescale_and_postscale(hvd, world, form):
    tensor = values(world.rank, 500)
    want = expected(world, -tensor, "zero")
    given = [tensor.clone()] if "grouped" in form else tensor.clone()
    got = call(hvd, form, given, ties="zero", prescale_factor=-2.0, postscale_factor=0.25)
    want.check(plain(got[0] if "grouped" in form else got), 0.25)


def test_prescale_scales_the_mean(hvd, world):
    tensor = values(world.rank, 500)
    want, scale = expected(world, tensor, "zero"), mean_abs(world, tensor)
    options = {"ties": "zero", "prescale_factor": 3.0, "postscale_factor": 0.5}
    got = call(hvd, "allreduce", tensor, scale="mean_abs", **options)
    want.check(plain(got), 1.5 * scale, rtol=4e-6)


def test_no_gradient_flows_through_a_vote(hvd, world):
    tensor = values(world.rank, 50).requires_grad_()
    got = call(hvd, "allreduce", tensor)
    assert not got.requires_grad
    total = (tensor * got).sum()
    total.backward()
    np.testing.assert_array_equal(plain(tensor.grad), plain(got))


def test_nonfinite_abstains(hvd, world):
    tensor = values(world.rank, 9000)
    if world.rank == 0:
        tensor[4096 + 3] = float("nan")
    expected(world, tensor).check(plain(call(hvd, "allreduce", tensor)))


def test_poll_becomes_true_without_synchronize(hvd, world):
    tensor = signal(world.rank, 3000)
    want = expected(world, tensor)
    handle = hvd.allreduce_async(tensor, op=hvd.MajorityVote)
    want.check(plain(wait_by_polling(hvd, handle)))
    handles = [
        hvd.allreduce_async(tensor, op=hvd.MajorityVote, name="polled"),
        hvd.allreduce_async(tensor, op=hvd.Sum, name="polled sum"),
        hvd.grouped_allreduce_async([tensor, tensor], op=hvd.MajorityVote, name="polled group"),
    ]
    vote, total, group = (wait_by_polling(hvd, handle) for handle in handles)
    want.check(plain(vote))
    np.testing.assert_allclose(plain(total), sum(world.allgather(plain(tensor))), atol=1e-4)
    want.check(plain(group[1]))


def test_other_ops_are_horovods(hvd, world):
    tensor = values(world.rank, 64)
    everyone = np.array(world.allgather(plain(tensor)))
    for op, reduced in [
        (None, everyone.mean(axis=0)),
        (hvd.Average, everyone.mean(axis=0)),
        (hvd.Sum, everyone.sum(axis=0)),
        (hvd.Max, everyone.max(axis=0)),
    ]:
        np.testing.assert_allclose(plain(hvd.allreduce(tensor, op=op)), reduced, atol=1e-5)
        got = hvd.synchronize(hvd.allreduce_async(tensor, op=op))
        np.testing.assert_allclose(plain(got), reduced, atol=1e-5)
    got = hvd.allreduce(tensor, op=hvd.Sum, compression=hvd.Compression.fp16)
    np.testing.assert_allclose(plain(got), everyone.sum(axis=0), atol=0.02)
    differentiable = values(world.rank, 8).requires_grad_()
    weights = values(3, 8)
    (hvd.allreduce(differentiable, op=hvd.Sum) * weights).sum().backward()
    np.testing.assert_allclose(plain(differentiable.grad), world.size * plain(weights), rtol=1e-5)


def test_unknown_choices(hvd):
    for argument, value in [("ties", "toss"), ("exchange", "carrier"), ("scale", "max")]:
        for form in ("allreduce", "allreduce_async_"):
            with pytest.raises(ValueError, match=argument):
                call(hvd, form, torch.ones(3), **{argument: value})


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_unsupported_types(hvd, dtype):
    for form in FORMS:
        with pytest.raises(TypeError, match=r"dtype|floating|float32"):
            call(hvd, form, torch.ones(3).to(dtype))


def test_sparse_tensor_is_refused(hvd):
    with pytest.raises((TypeError, ValueError), match="sparse"):
        call(hvd, "allreduce", torch.eye(4).to_sparse())


@pytest.mark.ranks(2)
def test_mismatch_is_refused_alike_and_the_next_vote_works(hvd, world):
    for form in FORMS:
        with pytest.raises(ValueError, match="uneven") as caught:
            call(hvd, form, torch.ones(10 + min(world.rank, 1)), name="uneven")
        assert len(set(world.allgather(str(caught.value)))) == 1
        np.testing.assert_array_equal(plain(call(hvd, form, -torch.ones(10))), -1)
