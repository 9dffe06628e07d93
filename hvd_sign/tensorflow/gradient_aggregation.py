"""Sums of passes in graphs: the namesake of ``horovod.tensorflow.gradient_aggregation``."""

import hvd_sign_tf
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_tf.require import BINDING

__getattr__, __dir__, __all__ = namesake(BINDING.submodule("gradient_aggregation"), hvd_sign_tf)
