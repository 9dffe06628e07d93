"""Two optimizers that step in turn, and statistics set to zero in between; see test_observe.py."""

import torch

import hvd_sign.torch as hvd

hvd.init()


def wrap(sizes: tuple[int, ...], **options):
    parameters = [torch.nn.Parameter(torch.ones(n)) for n in sizes]
    return hvd.DistributedOptimizer(
        torch.optim.SGD(parameters, lr=0.1), compression=hvd.Compression.sign, **options
    )


def parameters(optimizer) -> list[torch.nn.Parameter]:
    return optimizer.param_groups[0]["params"]


large = wrap((300_000, 10), bucket_bytes=40, nonfinite="skip")
small = wrap((50,))
for turn in range(4):
    large.zero_grad()
    small.zero_grad()
    factor = float("nan") if (turn, hvd.rank()) == (1, 0) else 1.0
    sum(factor * p.sum() for p in parameters(large)).backward()
    hvd.allreduce(torch.ones(100_000), op=hvd.MajorityVote)
    if turn % 2:
        sum(p.sum() for p in parameters(small)).backward()
        small.step()
    hvd.reset_vote_stats()
    large.step()
    assert hvd.vote_stats().votes <= 2
