"""A Horovod training script as users have them; the tests change its import and one argument."""

import horovod.torch as hvd
import numpy as np
import torch

hvd.init()
torch.manual_seed(7 + hvd.rank())
centres = 2.5 * torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


def cloud(count):
    labels = torch.arange(count) % 4
    return centres[labels] + torch.randn(count, 16), labels


model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
optimizer = hvd.DistributedOptimizer(
    optimizer,
    named_parameters=model.named_parameters(),
)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
for _ in range(60):
    inputs, labels = cloud(32)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()

weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
everyone = hvd.allgather(weights.reshape(1, -1))
assert all(torch.equal(row, everyone[0]) for row in everyone), "the ranks' parameters differ"
inputs, labels = cloud(400)
accuracy = float((model(inputs).argmax(1) == labels).float().mean())
magnitudes = np.unique(np.abs(np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])))
print(f"rank {hvd.rank()} of {hvd.size()} accuracy {accuracy:.2f} magnitudes {len(magnitudes)}")
