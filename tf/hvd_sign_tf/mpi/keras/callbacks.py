"""Callbacks of ``Model.fit``, which are the same on both runtimes."""

from hvd_sign_tf.keras.callbacks import *
