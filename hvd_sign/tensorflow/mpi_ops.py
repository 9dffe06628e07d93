"""Ranks, process sets and operations: the namesake of ``horovod.tensorflow.mpi_ops``."""

import hvd_sign_tf
from hvd_sign.frontend.namesakes import namesake
from hvd_sign_tf.require import BINDING

__getattr__, __dir__, __all__ = namesake(BINDING.submodule("mpi_ops"), hvd_sign_tf)
