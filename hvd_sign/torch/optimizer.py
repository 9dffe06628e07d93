"""Optimizers that exchange gradients: the namesake of ``horovod.torch.optimizer``."""

import hvd_sign_torch
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_torch.require import BINDING

__getattr__, __dir__, __all__ = namesake(BINDING.submodule("optimizer"), hvd_sign_torch)
