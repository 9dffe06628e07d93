"""Sums of passes: the namesake of ``horovod.tensorflow.gradient_aggregation_eager``."""

import hvd_sign_tf
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_tf.require import BINDING

__getattr__, __dir__, __all__ = namesake(
    BINDING.submodule("gradient_aggregation_eager"), hvd_sign_tf
)
