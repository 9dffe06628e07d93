"""Small helpers: the namesake of ``horovod.tensorflow.util``."""

import hvd_sign_tf
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_tf.require import BINDING

__getattr__, __dir__, __all__ = namesake(BINDING.submodule("util"), hvd_sign_tf)
