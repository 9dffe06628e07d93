"""Every communication hook of the benchmarks on gradients of several buckets, checked by numpy."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import hvd_sign.torch as hvd
from benchmarks.methods.catalogue import METHODS
from benchmarks.ranks.pytorch import distributed, hooks
from benchmarks.ranks.pytorch.contests import Given

SHAPES = [(100, 60), (60,), (80, 50), (3000,)]  # 13,060 coordinates
BUCKET_MB = 0.02  # three buckets or more
STEPS = 6

hvd.init()
distributed.start(None)
rank, size = hvd.rank(), hvd.size()
inputs = np.stack(
    [np.random.default_rng(r).standard_normal(13_060).astype(np.float32) for r in range(size)]
)


def last_step(name, flat):
    """The gradients of the last of some steps with the same input, float32[d]."""
    given = Given(torch.from_numpy(flat), SHAPES)
    model = DistributedDataParallel(given, bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True)
    hooks.register(model, METHODS[name], seed=5)
    for _ in range(STEPS):
        for weight in given.weights:
            weight.grad = None
        model().backward()
    return np.concatenate([weight.grad.flatten().numpy() for weight in given.weights])


mean = inputs.mean(0)
for name, tolerance in (("ddp", 1e-6), ("ddp-fp16", 5e-3), ("ddp-bf16", 5e-2)):
    np.testing.assert_allclose(last_step(name, inputs[rank]), mean, atol=tolerance)

signs = np.sign(np.sign(inputs).sum(0))
np.testing.assert_array_equal(last_step("sign-bytes", inputs[rank]), signs)

# A rank is off by a level at most, the norm of a block of 512 / 127; no block's norm is above that
# of the 512 largest.
largest = np.sort(np.abs(inputs), axis=1)[:, -512:]
level = np.sqrt((largest**2).sum(1)).mean() / 127
error = np.abs(last_step("qsgd", inputs[rank]) - mean)
assert 0 < error.max() <= level * 1.001

# With feedback nothing is lost for ever: sent so far + residual = all that came. One bit of equal
# magnitudes is exact, and leaves nothing.
same = np.where(inputs[rank] < 0, -0.5, 0.5).astype(np.float32)
expected = np.where(inputs < 0, -0.5, 0.5).mean(0)
np.testing.assert_allclose(last_step("onebit-average", same), expected, atol=1e-6)

# The largest hundredth of a bucket are the same in each step if they are far above the rest.
sparse = np.full(13_060, 1e-6, np.float32)
sparse[[5, 7_000, 11_000]] = [rank + 1, -3, 2 * rank]
expected = {5: (size + 1) / 2, 7_000: -3, 11_000: size - 1}
got = last_step("topk", sparse)
for row, value in expected.items():
    assert abs(got[row] - value) < 1e-4, (row, got[row], value)
assert np.abs(np.delete(got, list(expected))).max() < 1e-4

# PowerSGD of rank r has the mean of matrices of rank r, with common columns, exactly.
for count in (1, 2, 4):
    common, own = np.random.default_rng(99), np.random.default_rng(rank)
    parts = []
    for shape in SHAPES:
        if len(shape) == 1:
            parts.append(own.standard_normal(shape))
        else:
            left, right = ((side, count) for side in shape)
            parts.append(common.standard_normal(left) @ own.standard_normal(right).T)
    flat = np.concatenate([part.flatten() for part in parts]).astype(np.float32)
    name = f"powersgd-{count}"
    every = hvd.allgather(torch.from_numpy(flat).unsqueeze(0), name=f"{name}.inputs")
    got = last_step(name, flat)
    np.testing.assert_allclose(got, every.mean(0), atol=1e-4)
    results = hvd.allgather(torch.from_numpy(got).unsqueeze(0), name=name)
    assert (results == results[0]).all()

distributed.stop()
hvd.shutdown()
print("a rank is done", flush=True)
