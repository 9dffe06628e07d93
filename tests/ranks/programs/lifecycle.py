"""Initialised, shut down and initialised again, with votes and an optimizer each time."""

import torch

import hvd_sign
import hvd_sign.torch as hvd

parameter = torch.nn.Parameter(torch.ones(100))


def refused() -> str:
    try:
        hvd.allreduce(torch.ones(3), op=hvd.MajorityVote)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "nothing"


assert "hvd.init()" in refused(), "before the first init()"
for turn in range(3):
    hvd.init()
    hvd.init()  # a second call changes nothing
    assert hvd.is_initialized()
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    optimizer = hvd.DistributedOptimizer(optimizer, compression=hvd.Compression.sign)
    before = parameter.detach().clone()
    parameter.sum().backward()
    optimizer.step()
    assert torch.equal(parameter.detach(), before - 0.5), turn
    optimizer.zero_grad()
    got = hvd.allreduce(torch.tensor([-4.0]), name="each time", op=hvd.MajorityVote)
    assert got.item() == -1
    total = hvd.allreduce(torch.ones(1), op=hvd.Sum)
    assert total.item() == hvd.size()
    rank = hvd.rank()
    hvd.shutdown()
    hvd.shutdown()
    assert not hvd.is_initialized()
assert "hvd.init()" in refused(), "after the last shutdown()"

# The core's own votes need no Horovod.
assert hvd_sign.allreduce(-torch.ones(3).numpy()).tolist() == [-1, -1, -1]
print(f"rank {rank} done", flush=True)
