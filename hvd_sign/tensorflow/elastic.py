"""Jobs whose ranks come and go: the namesake of ``horovod.tensorflow.elastic``."""

import hvd_sign_tf
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_tf.require import BINDING

__getattr__, __dir__, __all__ = namesake(
    BINDING.submodule("elastic"), hvd_sign_tf, hvd_sign_tf.elastic
)
