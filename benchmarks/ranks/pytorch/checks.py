"""Whether what a method made of known inputs is right, on a sample of the coordinates."""

from __future__ import annotations

import torch

import hvd_sign.torch as hvd
from benchmarks.methods.catalogue import Method

SAMPLE = 1 << 16  # coordinates that are compared
ADASUM_TOLERANCE = 1e-4
CHUNK = 4096  # coordinates with a scale of their own
MEAN_TOLERANCE = 1e-3  # relative: a zero, which a coin decides, moves a chunk's by 1/4096
SCALE_TOLERANCE = 1e-5  # relative: sums of absolute values, in fp32


def wrong(method: Method, name: str, signal: torch.Tensor, result: torch.Tensor) -> int | None:
    """How many of at most 65,536 coordinates, spread over all, are wrong; on all ranks at once.

    Votes must be the majority of the ranks' signs, times the scale where they have one, what tells
    a mean by signs must be so told, and what makes a mean must be it within its rounding. Adasum is
    worked out anew from the ranks' inner products.

    Args:
        method: what was done.
        name: of the Horovod operations that gather the ranks' inputs.
        signal: float32[d], this rank's input.
        result: float32[d].

    Returns:
        the number; None for what cannot be told from a sample: methods that lose by design, and
        votes of several nodes that have several ranks each.
    """
    if method.averages:
        mean = hvd.allreduce(told(signal), op=hvd.Average, name=f"{name}.told")
        zeros = hvd.allreduce((signal == 0).float(), op=hvd.Sum, name=f"{name}.zeros")
        close = torch.isclose(result, told(mean), rtol=MEAN_TOLERANCE, atol=0)
        # Where ranks cancel each other rounding decides the sign, and where one has 0 a coin.
        sure = (zeros == 0) & (mean.abs() > SCALE_TOLERANCE * result.abs())
        return int((~close & sure).sum())
    rows = torch.linspace(0, len(signal) - 1, min(SAMPLE, len(signal)), dtype=torch.float64).long()
    every = hvd.allgather(signal[rows].unsqueeze(0), name=f"{name}.sample").double()
    got = result[rows].double()
    if method.votes:
        if method.options.get("exchange") == "hierarchical" and 1 < hvd.cross_size() < hvd.size():
            return None
        if method.scaled:
            sizes = hvd.allgather(signal.abs().mean(dtype=torch.float64)[None], name=f"{name}.size")
            got = verdicts(got, sizes)
        return int((~right_votes(method, got, every)).sum())
    if method.op == "Adasum":
        expected = adasum_weights(inner_products(name, signal)) @ every
        return int(((got - expected).abs() > ADASUM_TOLERANCE).sum())
    if method.tolerance is None:
        return None
    return int(((got - every.mean(0)).abs() > method.tolerance).sum())


def told(numbers: torch.Tensor) -> torch.Tensor:
    """float32[d] by signs and the mean absolute value of each 4096 coordinates."""
    chunks = numbers.split(CHUNK)
    return torch.cat([chunk.sign() * chunk.abs().mean(dtype=torch.float64) for chunk in chunks]).to(
        numbers.dtype
    )


def verdicts(got: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Verdicts without their scale, float64[n]; one of another size than that is no -1, 0 or +1.

    Args:
        got: the scaled verdicts, float64[n].
        sizes: of the ranks' signals, mean absolute values, float64[M]; the scale is the median of
            those above 0, the lower middle one of an even number.
    """
    found = got / sizes[sizes > 0].median()
    return torch.where((found.abs() - 1).abs() <= SCALE_TOLERANCE, found.sign(), found)


def right_votes(method: Method, got: torch.Tensor, every: torch.Tensor) -> torch.Tensor:
    """Which of the verdicts, float64[n], are the majority of the rows of float64[M, n]: bool[n].

    Under `coin` a rank's zero is cast either way, and so is a tie; under `positive` both are +1;
    under `zero` both are 0.
    """
    margin, zeros = every.sign().sum(0), (every == 0).sum(0)
    ties = method.options.get("ties", "coin")
    if ties == "coin":
        return torch.where(margin.abs() <= zeros, got.abs() == 1, got == margin.sign())
    if ties == "positive":
        return got == torch.where(margin + zeros >= 0, 1.0, -1.0)
    return got == margin.sign()


def inner_products(name: str, signal: torch.Tensor) -> torch.Tensor:
    """Inner products of the ranks' signals, float64[M, M]; each rank takes a share of their d."""
    count = hvd.size()
    share = -(-len(signal) // count)
    padded = torch.nn.functional.pad(signal, (0, count * share - len(signal)))
    parts = hvd.alltoall(padded, name=f"{name}.shares").view(count, share)
    products = torch.zeros(count, count, dtype=torch.float64)
    for part in parts.split(SAMPLE, dim=1):
        part = part.double()
        products += part @ part.T
    return hvd.allreduce(products, op=hvd.Sum, name=f"{name}.products")


def adasum_weights(products: torch.Tensor) -> torch.Tensor:
    """What Adasum makes of M vectors, as their weights in it, float64[M].

    Two vectors become a (1 - a.b / 2 a.a) + b (1 - a.b / 2 b.b); neighbours first, then neighbours
    of what came of them (Maleki et al. 2021, arXiv 2006.02924, equation 2 and section 4).

    Args:
        products: inner products of the vectors, float64[M, M]; M is a power of two.
    """
    made = list(torch.eye(len(products), dtype=products.dtype))
    while len(made) > 1:
        pairs = zip(made[::2], made[1::2], strict=True)
        made = [_pair(a, b, products) for a, b in pairs]
    return made[0]


def _pair(a: torch.Tensor, b: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    ab, aa, bb = a @ products @ b, a @ products @ a, b @ products @ b
    return a * (1 - ab / (2 * aa)) + b * (1 - ab / (2 * bb))
