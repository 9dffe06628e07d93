"""Means and the warm-up's steps of tensors that live on a device, beside those in host memory.

PyTorch's operations run on the CPU here: the same code that a CUDA tensor takes. The tests run it
on a GPU where there is one.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.1")
pytest.importorskip("horovod.torch")

from hvd_sign.algorithms import Signum
from hvd_sign.core.buckets import Bucket, TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import Operand
from hvd_sign.rounds.base import Subject
from hvd_sign.rounds.dense import MeanRound, WarmingRound
from hvd_sign.rounds.reference import ReferenceRound
from hvd_sign.transports import LocalTransport
from hvd_sign.votes import MajorityVote
from hvd_sign_torch.checksums import checksums
from hvd_sign_torch.devices import TORCH_HOST, TensorOperations

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [0, 1, 64, 4097, 9000]
PLACES = [
    ("host", "cpu"),
    ("operations", "cpu"),
    pytest.param(
        ("operations", "cuda"),
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]


class Pair(LocalTransport):
    """One of two voters, of whom the other has three times as large numbers."""

    size = 2

    def sum(self, send, recv):
        """The sum of both; what is counted behind the numbers is counted here alone."""
        done = super().sum(send, recv)
        recv[: send.size - 2 - len(SIZES)] *= 4
        return done


def subject(dtype, algorithm=None, transport=None):
    name = str(dtype).removeprefix("torch.")
    specs = tuple(TensorSpec(f"t{i}", (n,), name, i) for i, n in enumerate(SIZES))
    options = VoteOptions(exchange="allgather", scale="mean_abs")
    rule, transport = MajorityVote(), transport or LocalTransport()
    return Subject(Bucket(0, specs), rule, algorithm or Signum(0.75), options, transport, 0)


def operands(place, signals):
    kind, where = place
    outs = [torch.full_like(s, 9, device=where) for s in signals]
    for signal, out in zip(signals, outs, strict=True):
        device = TORCH_HOST if kind == "host" else TensorOperations(out)
        yield Operand(device, signal.to(where), out, 8.0, 0.5)


def drawn(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(dtype) for n in SIZES]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_means(dtype, place):
    """In the tensors' own types; factors, which are for verdicts, do not matter; NaN is zeros."""
    signals = drawn(dtype, 0)
    signals[3][4096] = float("nan")
    given = list(operands(place, signals))
    vote = MeanRound(subject(dtype, transport=Pair()))
    for _ in vote.run(0, given):
        pass
    for i, (operand, signal) in enumerate(zip(given, signals, strict=True)):
        wanted = 2 * signal.double().numpy()
        if i == 3:
            wanted[4096] = 0
        assert operand.out.dtype == dtype
        np.testing.assert_array_equal(operand.out.double().cpu().numpy(), wanted)
    assert vote.nonfinite


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_warm_up_feeds_momentum(dtype, place):
    """With unscaled gradients, while the mean has the scale of those that came."""
    voting = ReferenceRound(subject(dtype))
    vote = WarmingRound(voting)
    wide = np.float64 if dtype == torch.float64 else np.float32
    kept = [np.zeros(n, wide) for n in SIZES]
    for step in range(2):
        signals = drawn(dtype, step)
        given = list(operands(place, signals))
        for _ in vote.run(step, given):
            pass
        for i, (operand, signal) in enumerate(zip(given, signals, strict=True)):
            assert torch.equal(operand.out.cpu(), signal)
            unscaled = signal.double().numpy().astype(wide) * wide(0.5)
            kept[i] = wide(0.75) * kept[i] + wide(0.25) * unscaled
    for i, wanted in enumerate(kept):
        found = voting.states.arrays().get(f"momentum/{i}", np.zeros(0, wide))
        np.testing.assert_array_equal(found, wanted, strict=True)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.bool, torch.complex64], ids=str)
def test_checksums_tell_bits_and_places(dtype):
    torch.manual_seed(0)
    tensors = [(3 * torch.randn(n)).to(dtype) for n in (0, 1, 9, 2**18 + 7)]
    first = checksums(tensors)
    assert first == checksums([t.clone() for t in tensors])
    assert all(0 <= one < 2**64 for one in first)
    for place, tensor in enumerate(tensors[1:], 1):
        for coordinate in (0, tensor.numel() // 2, tensor.numel() - 1):
            other = tensor.clone()
            other[coordinate] = not other[coordinate] if dtype == torch.bool else 5
            assert checksums([other]) != [first[place]]
    swapped = tensors[3].clone()
    swapped[-1], swapped[0] = tensors[3][0], tensors[3][-1]
    same = bool(swapped[0] == swapped[-1])
    assert (checksums([swapped]) == [first[3]]) == same
    turned = torch.arange(6.0).reshape(2, 3)
    assert checksums([turned.t()]) == checksums([turned.t().contiguous()])
