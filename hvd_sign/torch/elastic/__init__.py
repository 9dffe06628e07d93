"""Jobs whose ranks come and go: the namesake of ``horovod.torch.elastic``."""

import hvd_sign_torch
from hvd_sign.frontend.namesakes import namesake
from hvd_sign.torch.elastic import sampler, state
from hvd_sign_torch.require import BINDING

__getattr__, __dir__, __all__ = namesake(
    BINDING.submodule("elastic"), hvd_sign_torch, hvd_sign_torch.elastic
)
