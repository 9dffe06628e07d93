"""The TensorFlow binding as users import it: ``import hvd_sign.tensorflow as hvd``."""

from hvd_sign_tf import *
