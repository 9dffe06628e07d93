"""What all ranks have in common: the namesake of ``horovod.torch.elastic.state``."""

import hvd_sign_torch
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_torch.require import BINDING

__getattr__, __dir__, __all__ = namesake(
    BINDING.submodule("elastic.state"), hvd_sign_torch, hvd_sign_torch.elastic
)
