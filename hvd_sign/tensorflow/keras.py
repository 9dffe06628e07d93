"""The Keras binding as users import it: ``import hvd_sign.tensorflow.keras as hvd``."""

from hvd_sign_tf.keras import *
