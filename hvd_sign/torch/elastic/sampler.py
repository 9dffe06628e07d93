"""Shares of the samples: the namesake of ``horovod.torch.elastic.sampler``."""

import hvd_sign_torch
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_torch.require import BINDING

__getattr__, __dir__, __all__ = namesake(
    BINDING.submodule("elastic.sampler"), hvd_sign_torch, hvd_sign_torch.elastic
)
