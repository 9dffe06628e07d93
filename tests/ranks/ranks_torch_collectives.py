"""What is done without a vote: the same on Horovod and on our own runtime, by the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import backward, gradients, named, parameters, plain, same_everywhere, values

FLOATS = (torch.float16, torch.float32, torch.float64)
COMMON = (torch.int32, torch.int64, *FLOATS)
BYTES = (torch.uint8, torch.int8)


def ours(*dtypes: torch.dtype) -> list:
    """Types that only our own runtime takes."""
    return [pytest.param(dtype, marks=pytest.mark.runtime("mpi")) for dtype in dtypes]


REDUCED = [*COMMON, *ours(*BYTES, torch.int16, torch.bfloat16)]
MOVED = [*COMMON, *BYTES, *ours(torch.int16, torch.bool, torch.bfloat16)]


def small(rank: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Whole numbers from 0 to 3, which every type adds up exactly."""
    generator = torch.Generator().manual_seed(50 + rank)
    return torch.randint(0, 4, shape, generator=generator).to(dtype)


def everyone(world, tensor: torch.Tensor) -> torch.Tensor:
    """All ranks' tensors, stacked, in fp64."""
    return torch.stack(world.allgather(tensor.double()))


@pytest.mark.parametrize("dtype", REDUCED, ids=str)
def test_allreduce_of_every_type(hvd, world, dtype):
    tensor = small(world.rank, 3, 5, dtype=dtype)
    every = everyone(world, tensor)
    for op, reduced in [
        (hvd.Sum, every.sum(0)),
        (hvd.Min, every.amin(0)),
        (hvd.Max, every.amax(0)),
        (hvd.Product, every.prod(0)),
    ]:
        got = hvd.allreduce(tensor, op=op)
        assert got.dtype == dtype
        assert torch.equal(got.double(), reduced)
        first, second = hvd.grouped_allreduce([tensor, tensor[0]], op=op)
        assert torch.equal(first.double(), reduced)
        assert torch.equal(second.double(), reduced[0])
    given = tensor.t().clone().t() if tensor.is_contiguous() else tensor
    assert hvd.allreduce_(given, op=hvd.Sum) is given
    assert torch.equal(given.double(), every.sum(0))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mean_and_factors(hvd, world, dtype):
    tensor = small(world.rank, 20, dtype=dtype)
    total = everyone(world, tensor).sum(0)
    for options, wanted in [
        ({}, total / world.size),
        ({"op": hvd.Average}, total / world.size),
        ({"op": hvd.Sum, "prescale_factor": 0.5, "postscale_factor": 3.0}, 1.5 * total),
    ]:
        got = hvd.synchronize(hvd.allreduce_async(tensor, **options))
        np.testing.assert_allclose(plain(got), wanted, rtol=2e-3)


@pytest.mark.parametrize("dtype", MOVED, ids=str)
def test_moving_every_type(hvd, world, dtype):
    root = world.size - 1
    tensor = small(world.rank, 4, 3, dtype=dtype)
    at_root = world.bcast(tensor, root)
    received = hvd.broadcast(tensor, root)
    assert received.dtype == dtype
    assert torch.equal(received, at_root)
    scalar = torch.tensor(world.rank % 2).to(dtype)
    assert torch.equal(hvd.broadcast_(scalar, root), torch.tensor(root % 2).to(dtype))
    mine = tensor[: world.rank + 1]
    joined = torch.cat(world.allgather(mine))
    assert torch.equal(hvd.allgather(mine), joined)
    both = hvd.grouped_allgather([mine, tensor])
    assert torch.equal(both[0], joined)
    assert torch.equal(both[1], torch.cat(world.allgather(tensor)))


def rows(rank: int, size: int) -> list[int]:
    """How many rows a rank sends to each."""
    return [(rank + to) % 3 for to in range(size)]


@pytest.mark.runtime("mpi")
def test_tensors_that_are_negated_or_conjugated_later(hvd, world):
    """Memory, and a note that says negate; Horovod itself does not read the note."""
    tensor = small(world.rank, 2 * world.size, dtype=torch.float32) + 1
    every = everyone(world, tensor).float()
    later = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert later.is_neg()
    assert torch.equal(hvd.allreduce(later, op=hvd.Sum), every.sum(0))
    assert torch.equal(hvd.allgather(later), every.reshape(-1))
    assert torch.equal(hvd.broadcast(later, 0), every[0])
    shares = every[:, 2 * world.rank : 2 * world.rank + 2]
    assert torch.equal(hvd.alltoall(later), shares.reshape(-1))
    assert torch.equal(hvd.reducescatter(later, op=hvd.Sum), shares.sum(0))
    hvd.allreduce_(later, op=hvd.Sum)
    assert torch.equal(later, every.sum(0))
    whole = torch.complex(tensor, tensor).conj()
    assert whole.is_conj()
    assert torch.equal(hvd.broadcast(whole, 0), torch.complex(every[0], -every[0]))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_alltoall(hvd, world, as_tensor):
    splits = rows(world.rank, world.size)
    mine = values(world.rank, sum(splits), 2)
    sent = world.allgather(mine.split(splits))
    wanted = torch.cat([parts[world.rank] for parts in sent])
    counts = [rows(rank, world.size)[world.rank] for rank in range(world.size)]
    given = torch.tensor(splits, dtype=torch.int32) if as_tensor else splits
    got, received = hvd.alltoall(mine, splits=given)
    assert torch.equal(got, wanted)
    assert received.tolist() == counts
    equal = torch.full((world.size, 2), float(world.rank))
    back = hvd.alltoall(equal)
    assert back[:, 0].tolist() == list(range(world.size))


def test_reducescatter(hvd, world):
    tensor = values(world.rank, 2 * world.size + 1, 3)
    shares = everyone(world, tensor).sum(0).tensor_split(world.size)
    got = hvd.reducescatter(tensor, op=hvd.Sum)
    np.testing.assert_allclose(plain(got), shares[world.rank], atol=1e-5)
    mean, other = hvd.grouped_reducescatter([tensor, tensor * 2])
    np.testing.assert_allclose(plain(mean), shares[world.rank] / world.size, atol=1e-5)
    np.testing.assert_allclose(plain(other), 2 * shares[world.rank] / world.size, atol=1e-5)


def gradient_of(tensor: torch.Tensor, output, weights: torch.Tensor) -> np.ndarray:
    (output * weights).sum().backward()
    return plain(tensor.grad)


def test_gradients_of_reductions(hvd, world):
    shape = (2 * world.size, 2)
    weights = values(30 + world.rank, *shape)
    total = everyone(world, weights).sum(0)
    for op, wanted in [(hvd.Sum, total), (hvd.Average, total / world.size)]:
        tensor = values(world.rank, *shape).requires_grad_()
        got = gradient_of(tensor, hvd.allreduce(tensor, op=op), weights)
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        tensor = values(world.rank, *shape).requires_grad_()
        _, second = hvd.grouped_allreduce([torch.ones(3), tensor], op=op)
        np.testing.assert_allclose(gradient_of(tensor, second, weights), wanted, atol=1e-5)
        mine = values(60 + world.rank, 2, 2)
        tensor = values(world.rank, *shape).requires_grad_()
        got = gradient_of(tensor, hvd.reducescatter(tensor, op=op), mine)
        factor = world.size if op == hvd.Sum else 1  # as Horovod has it
        np.testing.assert_allclose(got, factor * torch.cat(world.allgather(mine)), atol=1e-5)


def test_gradients_of_moves(hvd, world):
    size, rank = world.size, world.rank
    tensor = values(rank, rank + 1, 2).requires_grad_()
    joined = hvd.allgather(tensor)
    weights = values(40 + rank, *joined.shape)
    start = rank * (rank + 1) // 2
    mean = everyone(world, weights).mean(0)[start : start + rank + 1]
    np.testing.assert_allclose(gradient_of(tensor, joined, weights), mean, atol=1e-5)
    tensor = values(rank, 5).requires_grad_()
    weights = values(70 + rank, 5)
    mean = everyone(world, weights).mean(0)
    got = gradient_of(tensor, hvd.broadcast(tensor, size - 1), weights)
    np.testing.assert_allclose(got, mean if rank == size - 1 else 0 * mean, atol=1e-5)
    splits = rows(rank, size)
    tensor = values(rank, sum(splits), 2).requires_grad_()
    output, received = hvd.alltoall(tensor, splits=splits)
    weights = values(90 + rank, *output.shape)
    got = gradient_of(tensor, output, weights)
    theirs = world.allgather(weights.split(received.tolist()))
    wanted = torch.cat([parts[rank] for parts in theirs])
    np.testing.assert_allclose(got, plain(wanted), atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_named_in_another_order_on_each_rank(hvd, world, seed):
    given = [values(10 * i + world.rank, 40 + i) for i in range(8)]
    order = np.random.default_rng([seed, world.rank]).permutation(8)
    handles = {i: hvd.allreduce_async(given[i], op=hvd.Sum, name=f"any {i}") for i in order}
    for i in range(8):
        got = plain(hvd.synchronize(handles[i]))
        np.testing.assert_allclose(got, everyone(world, given[i]).sum(0), atol=1e-5)


def wrapped(hvd, params: list, **options):
    inner = torch.optim.SGD(params, lr=0.5)
    return hvd.DistributedOptimizer(inner, named_parameters=named(params), **options)


def test_a_step_by_hand(hvd, world):
    """Rank r's gradient is r + 1: the mean of 1 to M is (M + 1) / 2."""
    mean = (world.size + 1) / 2
    for options, gradient in [
        ({}, mean),
        ({"op": hvd.Sum}, mean * world.size),
        ({"gradient_predivide_factor": 2.0}, mean),
        ({"compression": hvd.Compression.fp16}, mean),
        ({"backward_passes_per_step": 2}, 2 * mean),
        ({"groups": 1}, mean),
    ]:
        params = [torch.nn.Parameter(torch.full((3, 2), 5.0)), torch.nn.Parameter(torch.ones(4))]
        optimizer = wrapped(hvd, params, **options)
        for _ in range(options.get("backward_passes_per_step", 1)):
            ((world.rank + 1) * (params[0].sum() + params[1].sum())).backward()
        optimizer.step()
        np.testing.assert_allclose(plain(params[0]), 5.0 - 0.5 * gradient, rtol=1e-6)
        np.testing.assert_allclose(plain(params[1]), 1.0 - 0.5 * gradient, rtol=1e-6)
        optimizer.zero_grad()


@pytest.mark.ranks(2)
def test_a_gradient_that_one_rank_lacks_is_zero(hvd, world):
    params = parameters((4,), (6,))
    optimizer = wrapped(hvd, params)
    given = gradients(world.rank, params)
    backward(params, [given[0], None if world.rank == 0 else given[1]])
    optimizer.step()
    alone = torch.zeros(6) if world.rank == 0 else given[1]
    np.testing.assert_allclose(plain(params[1].grad), everyone(world, alone).mean(0), atol=1e-6)
    assert same_everywhere(world, *params)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("dense", [False, True])
def test_sparse_gradients(hvd, world, dense):
    table = torch.nn.Embedding(5, 2, sparse=True)
    with torch.no_grad():
        table.weight.fill_(0.0)
    optimizer = wrapped(hvd, [table.weight], sparse_as_dense=dense)
    table(torch.tensor([world.rank % 2, 4])).sum().backward()
    optimizer.step()
    moved = torch.zeros(5, 2)
    for rank in range(world.size):
        moved[rank % 2] -= 0.5 / world.size
        moved[4] -= 0.5 / world.size
    np.testing.assert_allclose(plain(table.weight), moved, atol=1e-6)


def test_synchronize_clip_and_step(hvd, world):
    params = parameters((4,))
    before = plain(params[0]).copy()
    optimizer = wrapped(hvd, params)
    backward(params, [torch.full((4,), 8.0 * (world.rank + 1))])
    optimizer.synchronize()
    torch.nn.utils.clip_grad_value_(params, 1.0)
    with optimizer.skip_synchronize():
        optimizer.step()
    np.testing.assert_allclose(plain(params[0]), before - 0.5, atol=1e-6)


def test_states_come_from_the_root(hvd, world):
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(world.rank)
    hvd.broadcast_parameters(model.state_dict(), root_rank=world.size - 1)
    assert torch.equal(model.weight, torch.full((2, 3), world.size - 1.0))
    params = parameters((3,))
    optimizer = torch.optim.Adam(params, lr=0.1 * (world.rank + 1))
    backward(params, gradients(world.rank, params))
    optimizer.step()
    optimizer.zero_grad()
    moment = world.bcast(plain(optimizer.state[params[0]]["exp_avg"]), 0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.1
    np.testing.assert_array_equal(plain(optimizer.state[params[0]]["exp_avg"]), moment)
    assert hvd.broadcast_object({"epoch": world.rank}, root_rank=0) == {"epoch": 0}
    assert hvd.allgather_object(("rank", world.rank)) == [("rank", r) for r in range(world.size)]
    hvd.barrier()


def test_who_takes_part(hvd, world):
    assert hvd.is_initialized()
    assert (hvd.rank(), hvd.size()) == (world.rank, world.size)
    assert (hvd.local_rank(), hvd.local_size()) == (world.rank, world.size)  # one machine
    assert (hvd.cross_rank(), hvd.cross_size()) == (0, 1)
    assert hvd.mpi_threads_supported()
    assert hvd.mpi_enabled()
    assert hvd.mpi_built()
    assert not hvd.gloo_enabled()
    assert not hvd.nccl_built()
    assert not hvd.cuda_built()
    assert not hvd.rocm_built()
