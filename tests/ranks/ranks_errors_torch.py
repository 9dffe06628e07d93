"""Mistakes in calls: scripts that catch what plain Horovod raises catch ours; nothing hangs."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import horovod.torch as horovod
import numpy as np
import pytest
import torch
from helpers import plain


@pytest.fixture(scope="module")
def theirs(hvd, world) -> Iterator[Any]:
    """Plain Horovod, beside our own runtime if that is in use."""
    horovod.init()
    yield horovod
    world.Barrier()
    if hvd.runtime() == "mpi":
        horovod.shutdown()


def odd(first: bool) -> torch.Tensor:
    return torch.ones(2 if first else 3)


def wide(first: bool) -> torch.Tensor:
    return torch.ones(2, 2 if first else 3)


def half(first: bool) -> torch.Tensor:
    return torch.ones(2, dtype=torch.float32 if first else torch.float64)


ONES, COMPLEX = torch.ones(2), torch.ones(2, dtype=torch.complex64)
SPARSE, SCALAR = torch.eye(2).to_sparse(), torch.tensor(1.0)
INTEGERS = {"dtype": torch.int32}

VOTED: dict[str, Callable[[Any, bool, Any], Any]] = {
    "shapes": lambda hvd, first, op: hvd.allreduce(odd(first), name="m1", op=op),
    "shapes in a group": lambda hvd, first, op: hvd.grouped_allreduce(
        [ONES, odd(first)], name="m2", op=op
    ),
    "shapes in place": lambda hvd, first, op: hvd.allreduce_(odd(first), name="m3", op=op),
    "dtypes": lambda hvd, first, op: hvd.allreduce(half(first), name="m4", op=op),
    "a complex tensor": lambda hvd, first, op: hvd.allreduce(COMPLEX, name="m6", op=op),
    "a sparse tensor": lambda hvd, first, op: hvd.allreduce(SPARSE, name="m7", op=op),
    "average too": lambda hvd, first, op: hvd.allreduce(ONES, average=True, name="m8", op=op),
    "no tensors": lambda hvd, first, op: hvd.grouped_allreduce([], name="m9", op=op),
}
"""Mistakes by name, of calls that can vote too: the module, whether on rank 0, and ``op``."""

OTHERS: dict[str, Callable[[Any, bool], Any]] = {
    "operations": lambda hvd, first: hvd.allreduce(
        ONES, name="m5", op=hvd.Sum if first else hvd.Max
    ),
    "factors": lambda hvd, first: hvd.allreduce(ONES, name="m10", prescale_factor=1.0 + first),
    "an unknown operation": lambda hvd, first: hvd.allreduce(ONES, name="m11", op=17),
    "allgather, shapes": lambda hvd, first: hvd.allgather(wide(first), name="m12"),
    "allgather, dtypes": lambda hvd, first: hvd.allgather(half(first), name="m13"),
    "broadcast, shapes": lambda hvd, first: hvd.broadcast(odd(first), 0, name="m14"),
    "broadcast, dtypes": lambda hvd, first: hvd.broadcast(half(first), 0, name="m15"),
    "broadcast, roots": lambda hvd, first: hvd.broadcast(ONES, int(first), name="m16"),
    "broadcast, no such root": lambda hvd, first: hvd.broadcast(ONES, 99, name="m17"),
    "alltoall, shapes": lambda hvd, first: hvd.alltoall(
        wide(first), splits=torch.tensor([2] + [0] * (hvd.size() - 1), **INTEGERS), name="m18"
    ),
    "alltoall, sum of splits": lambda hvd, first: hvd.alltoall(
        ONES, splits=torch.tensor([9] * hvd.size(), **INTEGERS), name="m19"
    ),
    "alltoall, number of splits": lambda hvd, first: hvd.alltoall(
        ONES, splits=torch.tensor([0] * 9, **INTEGERS), name="m20"
    ),
    "alltoall, floats": lambda hvd, first: hvd.alltoall(
        torch.ones(hvd.size()), splits=torch.ones(hvd.size()), name="m21"
    ),
    "reducescatter, shapes": lambda hvd, first: hvd.reducescatter(odd(first), name="m23"),
    "reducescatter, a scalar": lambda hvd, first: hvd.reducescatter(SCALAR, name="m24"),
    "reducescatter, operation": lambda hvd, first: hvd.reducescatter(ONES, name="m25", op=hvd.Max),
    "parameters": lambda hvd, first: hvd.broadcast_parameters("model", 0),
    "ranks of a process set": lambda hvd, first: hvd.ProcessSet("ab"),
}
"""Likewise, of other calls."""


def raised(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011, which one is what is asked
        call()
    return caught.value


def builtin(error: Exception) -> type:
    """What of an error's class Python itself has: what a script can name that knows no Horovod."""
    return next(kind for kind in type(error).__mro__ if getattr(builtins, kind.__name__, 0) is kind)


@pytest.mark.ranks(2)
@pytest.mark.runtime("mpi")
@pytest.mark.parametrize("mistake", [*VOTED, *OTHERS])
def test_operations(hvd, theirs, world, mistake):
    def call(module) -> Any:
        if mistake in VOTED:
            return VOTED[mistake](module, world.rank == 0, module.Sum)
        return OTHERS[mistake](module, world.rank == 0)

    kind = builtin(raised(lambda: call(theirs)))
    assert isinstance(raised(lambda: call(hvd)), kind)
    still_works(hvd, world)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("mistake", VOTED)
def test_votes(hvd, theirs, world, mistake):
    first = world.rank == 0
    kind = builtin(raised(lambda: VOTED[mistake](theirs, first, theirs.Sum)))
    assert isinstance(raised(lambda: VOTED[mistake](hvd, first, hvd.MajorityVote)), kind)
    still_works(hvd, world, op=hvd.MajorityVote)


def still_works(hvd, world, **op) -> None:
    op = op or {"op": hvd.Max}
    np.testing.assert_array_equal(plain(hvd.allreduce(torch.ones(3), name="fine", **op)), 1)


@pytest.mark.ranks(2)
def test_process_sets(hvd, world):
    """What plain Horovod's say of a rank outside, and of wrong registrations."""
    alone = hvd.add_process_set([0])
    modules = [hvd, horovod] if hvd.runtime() == "horovod" else [hvd]
    for module in modules:
        for call in outside(module, alone) if world.rank else ():
            assert isinstance(raised(call), ValueError)
        assert isinstance(raised(partial(module.add_process_set, [0])), ValueError)
    assert hvd.remove_process_set(alone)
    assert not hvd.remove_process_set(alone)
    assert not hvd.remove_process_set(hvd.global_process_set)
    assert (alone.size(), alone.rank(), alone.included()) == (None, None, world.rank == 0)


def outside(module, process_set) -> list[Callable[[], Any]]:
    named = {"process_set": process_set, "name": "outside"}
    return [
        lambda: module.allreduce(ONES, **named),
        lambda: module.allgather(ONES, **named),
        lambda: module.broadcast(ONES, 0, **named),
        lambda: module.barrier(process_set=process_set),
        process_set.rank,
    ]


@pytest.mark.ranks(2)
def test_a_name_under_way(hvd, theirs, world):
    for module, op in ((theirs, theirs.Sum), (hvd, hvd.Sum), (hvd, hvd.MajorityVote)):
        begin = partial(module.allreduce_async, ONES, name="once", op=op)
        if world.rank == 0:
            handle = begin()
            assert isinstance(raised(partial(waited, module, begin)), ValueError)
        world.Barrier()
        if world.rank:
            handle = begin()
        module.synchronize(handle)


def waited(module, begin: Callable[[], Any]) -> Any:
    return module.synchronize(begin())
