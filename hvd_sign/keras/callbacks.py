"""Callbacks of ``Model.fit``: the namesake of ``horovod.keras.callbacks``."""

import hvd_sign_tf.keras.callbacks as ours
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_tf.require import BINDING

__getattr__, __dir__, __all__ = namesake(BINDING.submodule("keras.callbacks"), ours)
