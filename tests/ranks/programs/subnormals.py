"""Votes on subnormals, begun by a thread that takes subnormals for zeros, as TensorFlow's do."""

import numpy as np
import torch

import hvd_sign.torch as hvd

torch.set_flush_denormal(True)
hvd.init()
# Only bits: what is done with these numbers here would take them for zeros.
bits = np.array([0x00080000, 0x80080000, 0x00080000], np.uint32)
signal = torch.from_numpy(bits.view(np.float32))
verdict = hvd.allreduce(signal, op=hvd.MajorityVote, scale="mean_abs")
assert np.array_equal(verdict.numpy().view(np.uint32), bits)

parameter = torch.nn.Parameter(torch.zeros(3))
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD([parameter], lr=1.0), op=hvd.MajorityVote, scale="mean_abs", nonfinite="skip"
)
parameter.backward(signal.clone())
optimizer.step()
assert np.array_equal(parameter.grad.numpy().view(np.uint32), bits)
hvd.shutdown()
print("a rank is done", flush=True)
