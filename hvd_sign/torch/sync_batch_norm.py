"""Synchronised batch normalisation: the namesake of ``horovod.torch.sync_batch_norm``."""

import hvd_sign_torch
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_torch.require import BINDING

__getattr__, __dir__, __all__ = namesake(BINDING.submodule("sync_batch_norm"), hvd_sign_torch)
