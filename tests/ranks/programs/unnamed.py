"""A user's unnamed operations, between votes over Horovod's collectives; argument: rounds."""

import random
import sys
import time

import numpy as np
import torch

import hvd_sign.torch as hvd
from hvd_sign_torch.backend import backend

hvd.init(process_sets="dynamic")
rank, size = hvd.rank(), hvd.size()
own = random.Random(rank)  # each rank dawdles in its own way
shared = random.Random(7)  # and chooses as the others do
even = hvd.add_process_set(list(range(0, size, 2)))


def given(seed: int, of: int, length: int = 40) -> np.ndarray:
    """What rank `of` brings to operation `seed`."""
    return np.random.default_rng([seed, of]).integers(-9, 10, length).astype(np.float32)


def mine(seed: int) -> torch.Tensor:
    return torch.from_numpy(given(seed, rank))


def everyones(seed: int) -> np.ndarray:
    return np.array([given(seed, of) for of in range(size)])


def check(got, want: np.ndarray) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, atol=1e-4)


def dawdle() -> None:
    if own.random() < 0.3:
        time.sleep(0.002)


def both(seed: int) -> list[torch.Tensor]:
    return [mine(seed), 2 * mine(seed)]


def part(values: np.ndarray) -> np.ndarray:
    """This rank's share of 40 coordinates in `size` parts."""
    share = 40 // size
    return values[rank * share : (rank + 1) * share]


def differentiable(seed: int) -> None:
    """Backward passes of Horovod's operations are unnamed operations themselves."""
    x = mine(seed).requires_grad_()
    weights = torch.from_numpy(given(seed + 1, 0))
    (hvd.allreduce(x, op=hvd.Sum) * weights).sum().backward()
    check(x.grad, size * given(seed + 1, 0))
    x.grad = None
    rows = torch.from_numpy(np.tile(given(seed + 1, 0), size))
    (hvd.allgather(x) * rows).sum().backward()
    check(x.grad, given(seed + 1, 0))
    x.grad = None
    (hvd.alltoall(x) ** 2).sum().backward()
    check(x.grad, 2 * given(seed, rank))
    x.grad = None
    (hvd.broadcast(x, 1) * weights).sum().backward()
    check(x.grad, given(seed + 1, 0) * (rank == 1))
    x.grad = None
    sum((t * weights).sum() for t in hvd.grouped_allreduce([x, x], op=hvd.Sum)).backward()
    check(x.grad, 2 * size * given(seed + 1, 0))
    x.grad = None
    sum((t * rows).sum() for t in hvd.grouped_allgather([x, x])).backward()
    check(x.grad, 2 * given(seed + 1, 0))
    x.grad = None
    share = torch.from_numpy(part(given(seed + 1, 0)))
    (hvd.reducescatter(x, op=hvd.Average) * share).sum().backward()
    check(x.grad, given(seed + 1, 0))
    x.grad = None
    sum((t * share).sum() for t in hvd.grouped_reducescatter([x, x], op=hvd.Average)).backward()
    check(x.grad, 2 * given(seed + 1, 0))


def refused(seed: int) -> None:
    """What one rank alone is refused does not count: its next operation meets the others'."""
    if rank == 1:
        try:
            hvd.allgather(mine(seed).reshape(5, 8).T)
        except ValueError as error:
            assert "contiguous" in str(error)  # noqa: PT017
        else:
            raise AssertionError("Horovod took a transposed tensor")
    check(hvd.allgather(mine(seed)), everyones(seed).reshape(-1))


def parameters(seed: int) -> None:
    """Unnamed parameters."""
    tensors = both(seed)
    hvd.broadcast_parameters(tensors, root_rank=1)
    check(tensors[1], 2 * given(seed, 1))


def in_place(seed: int) -> None:
    tensors = [mine(seed) for _ in range(4)]
    hvd.allreduce_(tensors[0], op=hvd.Sum)
    hvd.synchronize(hvd.allreduce_async_(tensors[1], op=hvd.Sum))
    hvd.grouped_allreduce_([tensors[2]], op=hvd.Sum)
    hvd.synchronize(hvd.grouped_allreduce_async_([tensors[3]], op=hvd.Sum))
    for tensor in tensors:
        check(tensor, everyones(seed).sum(0))
    tensors = [mine(seed) for _ in range(2)]
    hvd.broadcast_(tensors[0], 1)
    hvd.synchronize(hvd.broadcast_async_(tensors[1], 1))
    for tensor in tensors:
        check(tensor, given(seed, 1))


def at_once(seed: int) -> None:
    check(hvd.allreduce(mine(seed), op=hvd.Average), everyones(seed).mean(0))
    check(hvd.allgather(mine(seed)), everyones(seed).reshape(-1))
    check(hvd.broadcast(mine(seed), 1), given(seed, 1))
    check(hvd.alltoall(mine(seed)), np.concatenate([part(row) for row in everyones(seed)]))
    check(hvd.reducescatter(mine(seed), op=hvd.Sum), part(everyones(seed).sum(0)))
    for i, got in enumerate(hvd.grouped_allgather(both(seed))):
        check(got, (i + 1) * everyones(seed).reshape(-1))
    for i, got in enumerate(hvd.grouped_reducescatter(both(seed), op=hvd.Sum)):
        check(got, (i + 1) * part(everyones(seed).sum(0)))
    for i, got in enumerate(hvd.grouped_allreduce(both(seed), op=hvd.Sum)):
        check(got, (i + 1) * everyones(seed).sum(0))


def in_flight(seed: int) -> None:
    """All asynchronous kinds under way at the same time, awaited in this rank's own order."""
    handles = [
        (hvd.allreduce_async(mine(seed), op=hvd.Sum), everyones(seed).sum(0)),
        (hvd.allgather_async(mine(seed)), everyones(seed).reshape(-1)),
        (hvd.broadcast_async(mine(seed), 1), given(seed, 1)),
        (hvd.reducescatter_async(mine(seed), op=hvd.Sum), part(everyones(seed).sum(0))),
        (
            hvd.alltoall_async(mine(seed), splits=[40 // size] * size),
            np.concatenate([part(row) for row in everyones(seed)]),
        ),
    ]
    groups = [
        (hvd.grouped_allreduce_async(both(seed), op=hvd.Sum), everyones(seed).sum(0)),
        (hvd.grouped_allgather_async(both(seed)), everyones(seed).reshape(-1)),
        (
            hvd.grouped_reducescatter_async(both(seed), op=hvd.Sum),
            part(everyones(seed).sum(0)),
        ),
    ]
    own.shuffle(handles)
    for handle, want in handles:
        got = hvd.synchronize(handle)
        check(got[0] if isinstance(got, tuple) else got, want)
    for handle, want in groups:
        for i, got in enumerate(hvd.synchronize(handle)):
            check(got, (i + 1) * want)


def in_a_subset(seed: int) -> None:
    """Only the even ranks count this one, on their process set."""
    if rank % 2 == 0:
        got = hvd.allreduce(mine(seed), op=hvd.Sum, process_set=even)
        check(got, everyones(seed)[::2].sum(0))


parameter = torch.nn.Parameter(torch.zeros(40))
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD([parameter], lr=1.0), op=hvd.MajorityVote, ties="zero"
)
assert "HorovodTransport" in type(backend.adhoc(hvd.global_process_set).transport).__name__
kinds = [differentiable, refused, parameters, in_place, at_once, in_flight, in_a_subset]
for turn in range(int(sys.argv[1])):
    votes = list(range(6))
    own.shuffle(votes)
    handles = {}
    for i in votes:
        seed = 1000 * turn + i
        handles[i] = hvd.allreduce_async(
            mine(seed), name=f"vote {i}", op=hvd.MajorityVote, ties="zero"
        )
        dawdle()
    unnamed = hvd.allreduce_async(mine(1000 * turn + 6), op=hvd.MajorityVote, ties="zero")
    optimizer.zero_grad()
    before = parameter.detach().clone()
    (parameter * mine(1000 * turn + 7)).sum().backward()
    for kind in shared.sample(kinds, 3):
        kind(1000 * turn + 8)
        dawdle()
    optimizer.step()
    check(before - parameter, np.sign(np.sign(everyones(1000 * turn + 7)).sum(0)))
    own.shuffle(votes)
    for i in votes:
        check(hvd.synchronize(handles[i]), np.sign(np.sign(everyones(1000 * turn + i)).sum(0)))
    check(hvd.synchronize(unnamed), np.sign(np.sign(everyones(1000 * turn + 6)).sum(0)))
print(f"\nrank {rank} done\n", end="", flush=True)
