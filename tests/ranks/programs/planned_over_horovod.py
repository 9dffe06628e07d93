"""Votes over Horovod's collectives whose exchange, bucket size and fallback constants decide."""

import torch

import hvd_sign.torch as hvd

hvd.init()
rank, size = hvd.rank(), hvd.size()
sentence = "exchange: 'hierarchical' needs MPI"

parameters = [torch.nn.Parameter(torch.zeros(9000)), torch.nn.Parameter(torch.zeros(50, 70))]


def optimizer(**options):
    plain = torch.optim.SGD(parameters, lr=1.0)
    return hvd.DistributedOptimizer(plain, compression=hvd.Compression.sign, **options)


for call in (
    lambda: optimizer(exchange="hierarchical"),
    lambda: hvd.allreduce(torch.ones(3), op=hvd.MajorityVote, exchange="hierarchical"),
):
    try:
        call()
    except ValueError as error:
        refused = str(error)
    assert sentence in refused
    refused = ""

# One rank pulls hard one way, the others softly the other way: a vote and a mean differ.
pull = -10.0 * size if rank == 0 else 1.0
mean = (size - 1 - 10.0 * size) / size
for options, wanted in (
    ({}, 1.0),
    ({"fallback": "allreduce"}, -1.0),
    ({"fallback": "allreduce", "scale": "mean_abs"}, mean),
):
    voting = optimizer(exchange="auto", bucket_bytes="auto", **options)
    for _ in range(2):
        sum(p.sum() for p in parameters).mul(pull).backward()
        total = hvd.allreduce(torch.ones(3), op=hvd.Sum, name="a user's own")
        voting.step()
        assert total.tolist() == [size] * 3
        for p in parameters:
            assert torch.allclose(p.grad, torch.full_like(p, wanted))
        voting.zero_grad()
print(f"rank {rank} done", flush=True)
