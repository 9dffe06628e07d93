"""What is done to tensors around an allreduce: the namesake of ``horovod.torch.compression``."""

import hvd_sign_torch
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_torch.require import BINDING

__getattr__, __dir__, __all__ = namesake(BINDING.submodule("compression"), hvd_sign_torch)
