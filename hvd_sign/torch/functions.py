"""Broadcasts of objects and states: the namesake of ``horovod.torch.functions``."""

import hvd_sign_torch
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_torch.require import BINDING

__getattr__, __dir__, __all__ = namesake(BINDING.submodule("functions"), hvd_sign_torch)
