"""One meaning: numpy, PyTorch and TensorFlow decide the same, bit for bit, and keep the same."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import torch
from tf_helpers import recorded, values

import hvd_sign
from hvd_sign.algorithms import make_algorithm
from hvd_sign.core.buckets import TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.votes import MajorityVote

TIES = ("coin", "zero", "positive")
EXCHANGES = ("sharded", "allgather", "hierarchical")
DTYPES = {
    "float32": (np.float32, torch.float32),
    "float16": (np.float16, torch.float16),
    "bfloat16": (ml_dtypes.bfloat16, torch.bfloat16),
}
SHAPES = ((33, 500), (), (0, 4), (129,), (70, 3))
STEPS = 3


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def torch_of(array: np.ndarray) -> torch.Tensor:
    exact = torch.from_numpy(np.array(array, np.float32))
    return exact.to(DTYPES[array.dtype.name][1])


def numpy_of(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    """Exact: fp32 holds every number of these types."""
    return tensor.detach().float().numpy().astype(DTYPES[dtype][0])


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1000, 20_000], ids=["small", "large"])
def test_single_votes(hvd, hvd_tf, world, size, dtype, ties, exchange):
    signal = values(world.rank, size, dtype=dtype)
    name = f"{size} {dtype} {ties} {exchange}"
    options = {"name": name, "ties": ties, "exchange": exchange, "seed": 3}
    by_torch = hvd.allreduce(torch_of(signal), op=hvd.MajorityVote, **options)
    by_tensorflow = hvd_tf.allreduce(tf.constant(signal), op=hvd_tf.MajorityVote, **options)
    # Coins go by how many votes of that name there were: our own runtime counts both bindings'.
    together = hvd.runtime() == hvd_tf.runtime() == "mpi"
    for step, found in ((0, numpy_of(by_torch, dtype)), (together, by_tensorflow.numpy())):
        by_numpy = hvd_sign.allreduce(signal, step=int(step), **options)
        assert set(np.unique(by_numpy.astype(np.float32))) <= {-1.0, 0.0, 1.0}
        assert np.any(by_numpy)
        assert bits(found) == bits(by_numpy)


def gradients(rank: int, step: int, dtype: str) -> list[np.ndarray]:
    return [
        values(100 * rank + 10 * step + i, *shape, dtype=dtype) for i, shape in enumerate(SHAPES)
    ]


def numpys_steps(hvd, options: VoteOptions, given: list, dtype: str):
    from hvd_sign_torch.backend import backend

    specs = [TensorSpec(f"layer.{i}", shape, dtype, i) for i, shape in enumerate(SHAPES)]
    session = backend.session(hvd.global_process_set, specs, MajorityVote(), options)
    for signals in given:
        outs = [np.empty_like(signal) for signal in signals]
        for ordinal, (signal, out) in enumerate(zip(signals, outs, strict=True)):
            session.ready(ordinal, Operand(HOST, signal.reshape(-1), out.reshape(-1)))
        session.finish(lambda ordinal: pytest.fail("nothing is missing"))
        yield outs, session.state()


def torchs_steps(hvd, options: dict, given: list, dtype: str):
    kind = DTYPES[dtype][1]
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=kind)) for shape in SHAPES]
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(parameters, lr=0.5),
        named_parameters=[(f"layer.{i}", p) for i, p in enumerate(parameters)],
        op=hvd.MajorityVote,
        **options,
    )
    for signals in given:
        for parameter, signal in zip(parameters, signals, strict=True):
            parameter.backward(torch_of(signal))
        optimizer.step()
        yield [numpy_of(p.grad, dtype) for p in parameters], optimizer._gradients.session.state()
        optimizer.zero_grad()


def tensorflows_steps(hvd_tf, options: dict, given: list, dtype: str):
    owned = [tf.Variable(tf.zeros(shape, dtype)) for shape in SHAPES]
    for signals in given:
        tape, target = recorded(owned, [tf.constant(signal) for signal in signals])
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, **options)
        verdicts = [verdict.numpy() for verdict in tape.gradient(target, owned)]
        state = tape._hvd_sign_exchanges.state()
        last = str(max(int(key.partition("/")[0]) for key in state))
        kept = {k.partition("/")[2]: a for k, a in state.items() if k.partition("/")[0] == last}
        yield verdicts, kept


def check_steps_and_states(hvd, hvd_tf, world, dtype, ties, exchange, algorithm):
    """The same verdicts and the same state by all three, step after step."""
    options = {"ties": ties, "exchange": exchange, "algorithm": algorithm, "seed": 11}
    known = make_algorithm(algorithm)
    given = [gradients(world.rank, step, dtype) for step in range(STEPS)]
    ways = (
        numpys_steps(hvd, VoteOptions(**options | {"algorithm": known}), given, dtype),
        torchs_steps(hvd, options, given, dtype),
        tensorflows_steps(hvd_tf, options, given, dtype),
    )
    for _ in range(STEPS):
        (wanted, kept), *others = (next(way) for way in ways)
        for found, state in others:
            for verdict, want in zip(found, wanted, strict=True):
                assert bits(verdict) == bits(want)
            assert state.keys() == kept.keys()
            assert all(bits(state[key]) == bits(kept[key]) for key in kept)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_and_states(hvd, hvd_tf, world, dtype, ties, exchange):
    check_steps_and_states(hvd, hvd_tf, world, dtype, ties, exchange, "sign")


@pytest.mark.parametrize(
    "training",
    [
        {"warmup_steps": 1},
        {"min_size": 200},
        {"clip_value": 0.3, "scale": "mean_abs"},
        {"clip_norm": 2.0, "scale": "mean_abs", "min_size": 200},
    ],
    ids=", ".join,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_else_is_done_with_gradients(hvd, hvd_tf, world, dtype, training):
    """PyTorch's optimizer and TensorFlow's tape clip alike, and take means alike."""
    options = {"ties": "coin", "exchange": "sharded", "algorithm": "signum", "seed": 13, **training}
    given = [gradients(world.rank, step, dtype) for step in range(STEPS)]
    ways = (
        torchs_steps(hvd, options, given, dtype),
        tensorflows_steps(hvd_tf, options, given, dtype),
    )
    for _ in range(STEPS):
        (wanted, kept), (found, state) = (next(way) for way in ways)
        for verdict, want in zip(found, wanted, strict=True):
            assert bits(verdict) == bits(want)
        assert state.keys() == kept.keys()
        assert all(bits(state[key]) == bits(kept[key]) for key in kept)
