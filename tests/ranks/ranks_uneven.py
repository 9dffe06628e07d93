"""Horovod's own collectives beside join(). In a launch of its own: ranks that submitted different
numbers of operations to Horovod number its unnamed operations differently ever after.
"""

from __future__ import annotations

import numpy as np
import torch
from helpers import plain, values


def test_horovods_allreduce_while_ranks_join(hvd, world):
    for turn in range(world.rank + 1):
        total = hvd.allreduce(torch.ones(3), op=hvd.Sum, name=f"turn {turn}")
        np.testing.assert_array_equal(plain(total), world.size - turn)
    assert hvd.join() == world.size - 1
    got = hvd.allreduce(values(1, 50), op=hvd.MajorityVote)
    np.testing.assert_array_equal(plain(got), np.sign(plain(values(1, 50))))
