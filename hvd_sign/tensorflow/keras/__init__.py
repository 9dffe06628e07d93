"""The Keras binding as users import it: ``import hvd_sign.tensorflow.keras as hvd``."""

from hvd_sign_tf.keras import *

# A submodule becomes an attribute in the place of what came from there.
import hvd_sign.tensorflow.keras.callbacks
import hvd_sign.tensorflow.keras.elastic
