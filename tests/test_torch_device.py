"""Packing with PyTorch's operations, as on a GPU, against packing by the kernels.

The operations run on the CPU here: the same code that a CUDA tensor takes. The tests marked
``cuda`` run it on a GPU where there is one.
"""

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.1")
pytest.importorskip("horovod.torch")

from hvd_sign.algorithms import Algorithm, EfSign, Sign
from hvd_sign.core.buckets import Bucket, TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import Operand
from hvd_sign.rounds.base import Subject
from hvd_sign.rounds.reference import ReferenceRound
from hvd_sign.transports import LocalTransport
from hvd_sign.votes import MajorityVote
from hvd_sign_torch.devices import TORCH_HOST, TensorOperations


def on_host(signal, out, factor=1.0):
    return Operand(TORCH_HOST, signal, out, factor)


def by_operations(signal, out, factor=1.0):
    return Operand(TensorOperations(out), signal, out, factor)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [0, 1, 63, 64, 65, 4095, 4096, 4097, 9000]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]


class OddVoter(LocalTransport):
    """A lone voter whose zeros are cast the other way round."""

    rank = 1


def gradient(size, dtype, seed):
    """Numbers with zeros of both signs, dead blocks and one chunk that holds NaN and Inf."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=generator)
    x[torch.rand(size, generator=generator) < 0.2] = 0.0
    x[torch.rand(size, generator=generator) < 0.1] = -0.0
    x[128:192] = 0.0
    if size > 4096:
        x[4096] = float("nan")
        x[-1] = float("inf")
    return x.to(dtype)


def ballot(operands, sizes, ties, scale, transport):
    specs = tuple(TensorSpec(f"t{i}", (n,), "float32", 7 * i) for i, n in enumerate(sizes))
    options = VoteOptions(ties=ties, scale=scale, seed=11, exchange="allgather")
    subject = Subject(Bucket(0, specs), MajorityVote(), Sign(), options, transport, 0)
    vote = ReferenceRound(subject)
    for _ in vote.run(3, operands):
        pass
    return vote


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transport", [LocalTransport(), OddVoter()], ids=["even", "odd"])
@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_packing_gives_the_kernels_ballot_and_verdict(dtype, ties, transport, device):
    signals = [gradient(n, dtype, seed) for seed, n in enumerate(SIZES)]
    on_device = [signal.to(device) for signal in signals]
    outs = {
        "host": [torch.full_like(s, 9) for s in signals],
        "device": [torch.full_like(s, 9) for s in on_device],
    }
    host = [on_host(s, out) for s, out in zip(signals, outs["host"], strict=True)]
    gpu = [by_operations(s, out) for s, out in zip(on_device, outs["device"], strict=True)]
    if transport.rank == 1:  # a lone odd voter cannot check its own messages' sender
        packed = [_packed(v, SIZES, ties, transport) for v in (host, gpu)]
        np.testing.assert_array_equal(packed[0], packed[1])
        return
    votes = [ballot(v, SIZES, ties, "none", transport) for v in (host, gpu)]
    np.testing.assert_array_equal(votes[0].messages.ballots, votes[1].messages.ballots)
    for expected, got in zip(outs["host"], outs["device"], strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0)
    # Not both wrong in the same way: where the signal speaks, a lone voter's verdict is its sign.
    spoken = torch.isfinite(signals[3]) & (signals[3] != 0)
    assert torch.equal(outs["host"][3][spoken], signals[3][spoken].sign())


def _packed(operands, sizes, ties, transport):
    specs = tuple(TensorSpec(f"t{i}", (n,), "float32", 7 * i) for i, n in enumerate(sizes))
    options = VoteOptions(ties=ties)
    vote = ReferenceRound(Subject(Bucket(0, specs), MajorityVote(), Sign(), options, transport, 0))
    next(vote.run(3, operands))
    return vote.messages.ballots


@pytest.mark.parametrize("device", DEVICES)
def test_device_scale_and_factor(device):
    signal = torch.tensor([1.0, -3.0, 0.0, float("nan")] + [2.0] * 5000)
    for make, where in ((on_host, "cpu"), (by_operations, device)):
        out = torch.zeros(5004, device=where)
        ballot([make(signal.to(where), out, 10.0)], [5004], "coin", "mean_abs", LocalTransport())
        # The first 4096 abstain over the NaN, so the mean is that of the 908 twos after them.
        assert out[4096:].cpu().tolist() == [20.0] * 908
        assert not out[:4096].any()


@pytest.mark.parametrize("device", DEVICES)
def test_a_scale_beyond_the_type_is_its_largest_number(device):
    for make, where in ((on_host, "cpu"), (by_operations, device)):
        for dtype, number, most in (
            (torch.float16, 6e4, 65504.0),
            (torch.bfloat16, 2.0**127, 255 * 2.0**120),
            (torch.float64, 1e200, 2.0**128 - 2.0**104),  # the scale travels in fp32
        ):
            signal = torch.full((70,), -number, dtype=dtype, device=where)
            factor = 1.0 if dtype == torch.float64 else 4.0
            operand = make(signal, signal, factor)
            ballot([operand], [70], "coin", "mean_abs", LocalTransport())
            assert signal.cpu().tolist() == [-most] * 70


def test_absent_signal_and_strided_tensors():
    transposed = torch.arange(-6.0, 6.0).reshape(3, 4).t()
    assert not transposed.is_contiguous()
    vote = ballot([on_host(transposed, transposed)], [12], "zero", "none", LocalTransport())
    assert transposed.tolist() == [[-1, -1, 1], [-1, -1, 1], [-1, 0, 1], [-1, 1, 1]]
    assert vote.messages.geometry.blocks == 1
    out = torch.ones(70)
    ballot([by_operations(None, out)], [70], "coin", "none", LocalTransport())
    assert not out.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_in_the_place_of_signs(dtype, device):
    signal = torch.tensor([[1.5, -2.0, 0.0], [4.0, 1e-3, -0.5]]).to(dtype).t()
    for make, where in ((on_host, "cpu"), (by_operations, device)):
        out = torch.zeros(2, 3, dtype=dtype, device=where).t()
        operand = make(signal.to(where), out, 4.0)
        given = operand.device.read(operand)
        assert given.dtype == np.float32
        np.testing.assert_array_equal(given.reshape(-1), signal.reshape(-1).float().numpy())
        operand.device.take(operand, np.array([1, -1, 0, 0.5, 2, 3], np.float32))
        assert out.cpu().tolist() == [[4, -4], [0, 2], [8, 12]]
        absent = make(None, out)
        assert absent.device.read(absent) is None


@dataclass(frozen=True)
class Lion(Algorithm):
    """A signal and a state that differ, in operations of any library."""

    name = "test lion"
    planes = ("m",)

    def step(self, gradient, state):
        m = state["m"]
        return 0.9 * m + 0.1 * gradient, {"m": 0.75 * m + 0.25 * gradient}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ties", ["coin", "zero", "positive"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("algorithm", [Lion(), EfSign(), EfSign(0.5)], ids=repr)
def test_an_algorithm_keeps_the_same_on_the_host_and_on_a_device(algorithm, dtype, ties, device):
    specs = tuple(
        TensorSpec(f"t{i}", (n,), str(dtype).removeprefix("torch."), i) for i, n in enumerate(SIZES)
    )
    options = VoteOptions(ties=ties, exchange="allgather", algorithm=algorithm)
    votes = [
        ReferenceRound(
            Subject(Bucket(0, specs), MajorityVote(), algorithm, options, LocalTransport(), 0)
        )
        for _ in range(2)
    ]
    for step in range(3):
        signals = [gradient(n, dtype, 10 * step + seed) for seed, n in enumerate(SIZES)]
        outs = [[torch.full_like(s, 9) for s in signals] for _ in votes]
        outs[1] = [out.to(device) for out in outs[1]]
        for make, vote, places in zip((on_host, by_operations), votes, outs, strict=True):
            where = [s.to(out.device) for s, out in zip(signals, places, strict=True)]
            operands = [make(s, out) for s, out in zip(where, places, strict=True)]
            for _ in vote.run(step, operands):
                pass
            vote.states.end(counts=True)
        for mine, theirs in zip(*outs, strict=True):
            assert torch.equal(mine, theirs.cpu())
        kept = [vote.states.arrays() for vote in votes]
        names = {f"{plane}/{i}" for plane in algorithm.keeps for i in range(len(SIZES))}
        assert kept[0].keys() == kept[1].keys() == names
        for name, array in kept[0].items():
            np.testing.assert_array_equal(kept[1][name], array, strict=True)
    # The last chunk, which held Inf in each step, was never updated; the first one was.
    for plane in algorithm.keeps:
        assert not kept[0][f"{plane}/8"][8192:].any()
        assert kept[0][f"{plane}/8"][:4096].any()
