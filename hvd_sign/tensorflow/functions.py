"""Broadcasts of variables and objects: the namesake of ``horovod.tensorflow.functions``."""

import hvd_sign_tf
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_tf.require import BINDING

__getattr__, __dir__, __all__ = namesake(BINDING.submodule("functions"), hvd_sign_tf)
