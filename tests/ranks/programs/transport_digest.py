"""Votes in every order and size over whatever transport is chosen; prints the verdicts' digest."""

import hashlib

import torch

import hvd_sign.torch as hvd
from hvd_sign_torch.backend import backend

hvd.init()
rank, size = hvd.rank(), hvd.size()

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.ReLU(), torch.nn.Linear(300, 3))
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
    named_parameters=model.named_parameters(),
    compression=hvd.Compression.sign,
    bucket_bytes=2000,
)
torch.manual_seed(rank)
for turn in range(5):
    optimizer.zero_grad()
    model(torch.randn(8, 200)).square().mean().backward()
    # A user's operations between ours, named: see README on votes over Horovod's collectives.
    assert hvd.allreduce(torch.ones(3), op=hvd.Sum, name=f"sum {turn}").tolist() == [size] * 3
    optimizer.step()
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
assert all(torch.equal(weights, theirs) for theirs in hvd.allgather(weights[None]))

tensors = [torch.randn(100 + 64 * i) for i in range(5)]
order = list(range(5)) if rank % 2 else list(reversed(range(5)))
handles = {i: hvd.allreduce_async(tensors[i], name=f"vote {i}", op=hvd.MajorityVote) for i in order}
theirs = hvd.allreduce_async(torch.ones(4), op=hvd.Sum, name="theirs")
assert hvd.synchronize(theirs).tolist() == [size] * 4
verdicts = [hvd.synchronize(handles[i]) for i in range(5)]
again = hvd.grouped_allreduce(tensors, op=hvd.MajorityVote, scale="mean_abs", ties="zero")

try:
    hvd.allreduce(torch.ones(3 + min(rank, 1)), op=hvd.MajorityVote, name="bad")
except ValueError as error:
    sentence = str(error)
assert "'bad': shape differs between ranks: (3,) on rank 0; (4,) on" in sentence
for _ in range(2):
    wrong = torch.ones(3, dtype=torch.float32 if rank != 1 else torch.int64)
    try:
        hvd.allreduce(wrong, op=hvd.MajorityVote, name="refused")
    except (TypeError, ValueError) as error:
        sentence = str(error)
    assert "allreduce 'refused': " in sentence
    assert ("refused on rank 1: " in sentence) == (rank != 1)
    assert "got int64" in sentence
for array in (weights, *verdicts, *again):
    assert array.abs().sum() > 0

everything = b"".join(array.numpy().tobytes() for array in (weights, *verdicts, *again))
transport = type(backend.adhoc(hvd.global_process_set).transport).__name__
# In one piece, since the launcher mixes what ranks write.
print(f"\ndigest {hashlib.sha256(everything).hexdigest()} {transport}\n", end="", flush=True)

again_too = not hvd.gloo_enabled()  # Horovod's own rendezvous may hand out addresses of before
hvd.shutdown()
if again_too:
    hvd.init()
    assert hvd.allreduce(torch.tensor([1.0, -1.0]), op=hvd.MajorityVote).tolist() == [1, -1]
