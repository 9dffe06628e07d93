"""Arguments that are refused up front, and after which calls go on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import other_module, plain


def still_works(hvd) -> None:
    np.testing.assert_array_equal(plain(hvd.allreduce(torch.ones(3), op=hvd.Max)), 1)


def test_splits_are_whole_numbers(hvd, world):
    """Horovod cuts fractions off in a list, and refuses a tensor of floats."""
    rows = torch.ones(world.size)
    got, received = hvd.alltoall(rows, splits=[1.0] * world.size, name="whole")
    assert got.tolist() == [1.0] * world.size
    assert received.tolist() == [1] * world.size
    wrong = [torch.ones(world.size)]
    if hvd.runtime() == "mpi":
        wrong += [[1.5] * world.size, [1.2] * world.size, ["a"] * world.size, [-1.0] * world.size]
    for splits in wrong:
        with pytest.raises(ValueError, match="splits"):
            hvd.alltoall(rows, splits=splits, name="fractions")


def test_sign_compression_where_nothing_is_voted_on(hvd, world):
    sign, (parameter,) = hvd.Compression.sign, [torch.nn.Parameter(torch.ones(2))]
    rows = torch.ones(world.size)
    sgd = torch.optim.SGD([parameter], lr=1.0)
    calls = [
        lambda: hvd.reducescatter(rows, compression=sign),
        lambda: hvd.grouped_reducescatter([rows], compression=sign),
        lambda: hvd.allreduce(rows, compression=sign, op=hvd.Sum),
        lambda: hvd.grouped_allreduce([rows], compression=sign, op=hvd.Sum),
        lambda: hvd.DistributedOptimizer(sgd, compression=sign, op=hvd.Sum),
    ]
    if (other := other_module(hvd)) is not hvd:
        calls += [
            lambda: other.allreduce(rows, compression=sign),
            lambda: other.grouped_reducescatter([rows], compression=sign),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=r"compression: hvd\.Compression\.sign"):
            call()
    still_works(hvd)


@pytest.mark.ranks(2)
@pytest.mark.runtime("mpi")
def test_sign_compression_on_one_rank_ends_the_others_calls(hvd, world):
    chosen = hvd.Compression.sign if world.rank else hvd.Compression.none
    with pytest.raises(ValueError, match=r"compression: hvd\.Compression\.sign"):
        hvd.reducescatter(torch.ones(world.size), name="one rank", compression=chosen)
    still_works(hvd)
