"""One framework's votes under every combination of options: rows of tests/digests.csv.

Arguments: numpy, torch or tensorflow; the file that rank 0 writes; element types. A row is the
options, the digest of all verdicts, which is every rank's, and the payload that all ranks sent.
Gradients come from a hash. They have zeros of both signs, subnormals, blocks that are dead on all
ranks or on one, and in the second step NaN and Inf. Two ranks make a node.
"""

import csv
import functools
import hashlib
import itertools
import os
import sys

import numpy as np
from mpi4py import MPI

world = MPI.COMM_WORLD
os.environ["HVD_SIGN_NODE"] = str(world.rank // 2)

SIZES = (0, 1, 63, 64, 65, 4097, 70_001)
STEPS = 3
SUBNORMAL = {"float32": -130, "float64": -1030, "float16": -16, "bfloat16": -130}
OPTIONS = {
    "ties": ("coin", "zero", "positive"),
    "way": ("sharded", "allgather", "hierarchical", "hierarchical by mean"),
    "scale": ("none", "mean_abs"),
    "nonfinite": ("abstain", "skip"),
}


def hashed(size, *key):
    """SplitMix64 of a counter that begins where the key says."""
    begin = hashlib.sha256(repr(key).encode()).digest()[:8]
    x = np.frombuffer(begin, "<u8") + np.arange(size, dtype=np.uint64) * np.uint64(
        0x9E3779B97F4A7C15
    )
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


@functools.cache
def gradient(step, size, dtype):
    bits = hashed(size, world.rank, step, size)
    x = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    kind = bits % np.uint64(16)
    x[kind == 0] = 0.0
    x[kind == 1] = -0.0
    x[kind == 2] *= 2.0 ** SUBNORMAL[dtype]
    x[640:768] = 0
    if world.rank == 0:
        x[1280:1408] = 0
    if step == 1 and size == 4097 and world.rank == world.size - 1:
        x[100] = np.nan
    if step == 1 and size == 70_001 and world.rank == 0:
        x[9000] = -np.inf
    # Through fp32, for types without a conversion of their own from fp64.
    signal = (x if dtype == "float64" else x.astype(np.float32)).astype(dtype)
    signal.flags.writeable = False
    return signal


class Numpy:
    def __init__(self):
        import hvd_sign as hvd

        self.hvd = hvd

    def allreduce(self, signal, options):
        return self.hvd.allreduce(signal, op=self.hvd.MajorityVote, **options)


class Torch:
    stepping = "optimizer"

    def __init__(self):
        import torch

        import hvd_sign.torch as hvd

        self.torch, self.hvd = torch, hvd
        hvd.init()

    def allreduce(self, signal, options):
        tensor = self.tensor(signal)
        return self.array(self.hvd.allreduce(tensor, op=self.hvd.MajorityVote, **options))

    def steps(self, given, options):
        torch = self.torch
        parameters = [torch.nn.Parameter(torch.zeros_like(self.tensor(g))) for g in given[0]]
        optimizer = self.hvd.DistributedOptimizer(
            torch.optim.SGD(parameters, lr=1.0), op=self.hvd.MajorityVote, **options
        )
        for gradients in given:
            skipped = self.hvd.vote_stats().skipped_steps
            before = [p.detach().clone() for p in parameters]
            for p, g in zip(parameters, gradients, strict=True):
                p.backward(self.tensor(g))
            optimizer.step()
            if self.hvd.vote_stats().skipped_steps == skipped:
                yield [self.array(p.grad) for p in parameters]
            else:
                assert all(map(torch.equal, parameters, before))
            optimizer.zero_grad()

    def tensor(self, array):
        if array.dtype.name != "bfloat16":
            return self.torch.from_numpy(array.copy())
        return self.torch.from_numpy(array.view(np.int16).copy()).view(self.torch.bfloat16)

    def array(self, tensor):
        bits = tensor.dtype == self.torch.bfloat16
        return (tensor.view(self.torch.int16) if bits else tensor).numpy()


class TensorFlow:
    stepping = "tape"

    def __init__(self):
        import tensorflow as tf

        import hvd_sign.tensorflow as hvd

        self.tf, self.hvd = tf, hvd
        hvd.init()

    def allreduce(self, signal, options):
        tensor = self.tf.constant(signal)
        return self.hvd.allreduce(tensor, op=self.hvd.MajorityVote, **options).numpy()

    def steps(self, given, options):
        tf = self.tf
        variables = [tf.Variable(tf.zeros(g.shape, g.dtype)) for g in given[0]]
        for gradients in given:
            skipped = self.hvd.vote_stats().skipped_steps
            with tf.GradientTape() as tape:
                targets = [self.leaving(g)(v) for v, g in zip(variables, gradients, strict=True)]
            tape = self.hvd.DistributedGradientTape(tape, op=self.hvd.MajorityVote, **options)
            verdicts = [verdict.numpy() for verdict in tape.gradient(targets, variables)]
            if self.hvd.vote_stats().skipped_steps == skipped:
                yield verdicts
            else:
                assert all(np.isposinf(v.astype(np.float64)).all() for v in verdicts)

    def leaving(self, gradient):
        """A function whose gradient is that, with no arithmetic that takes subnormals for zeros."""
        return self.tf.custom_gradient(
            lambda v: (self.tf.reduce_sum(v), lambda upstream: self.tf.constant(gradient))
        )


def verdicts(framework, api, options, dtype):
    if api == "allreduce":
        del options["nonfinite"]
        options["name"] = repr((sorted(options.items()), dtype))  # coins go by it
        for step, size in [*((0, size) for size in SIZES), (1, 4097), (1, 70_001)]:
            yield framework.allreduce(gradient(step, size, dtype), options)
        return
    given = [[gradient(step, size, dtype) for size in SIZES] for step in range(STEPS)]
    # Two buckets: the largest tensor, and the others.
    for step in framework.steps(given, options | {"bucket_bytes": 2**16}):
        yield from step


def rows(framework, dtypes):
    hvd = framework.hvd
    stepping = getattr(framework, "stepping", None)
    for api, *chosen, dtype in itertools.product(
        filter(None, ("allreduce", stepping)), *OPTIONS.values(), dtypes
    ):
        options = dict(zip(OPTIONS, chosen, strict=True))
        if api == "allreduce" and options["nonfinite"] == "skip":
            continue  # there is no step to skip
        options["exchange"], _, mean = options.pop("way").partition(" by ")
        options["local"] = mean or "vote"
        hvd.reset_vote_stats()
        digest = hashlib.sha256()
        for verdict in verdicts(framework, api, options | {"seed": 11}, dtype):
            digest.update(verdict.tobytes())
        payload = world.allreduce(hvd.vote_stats().payload_bytes)
        digests = world.allgather(digest.hexdigest()[:16])
        assert len(set(digests)) == 1, (api, chosen, dtype, digests)
        yield [api, *chosen, dtype, digests[0], payload]


_, name, file, *dtypes = sys.argv
if "bfloat16" in dtypes:
    import ml_dtypes  # noqa: F401, tells numpy of it
framework = {"numpy": Numpy, "torch": Torch, "tensorflow": TensorFlow}[name]()
found = list(rows(framework, dtypes))
if world.rank == 0:
    with open(file, "w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(found)
framework.hvd.shutdown()
