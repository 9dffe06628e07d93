"""``hvd_sign.tensorflow.keras`` under the name that scripts for ``horovod.keras`` import.

It serves the Keras that TensorFlow has: 2.15, or 3 on TensorFlow.
"""

from hvd_sign_tf import Adasum
from hvd_sign_tf.keras import *

# A submodule becomes an attribute in the place of what came from there.
import hvd_sign.keras.callbacks
import hvd_sign.keras.elastic
