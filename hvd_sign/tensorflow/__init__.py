"""The TensorFlow binding as users import it: ``import hvd_sign.tensorflow as hvd``.

Its submodules are namesakes of Horovod's: ``from hvd_sign.tensorflow.mpi_ops import rank_op``.
"""

from hvd_sign_tf import *

# Of some of these Horovod's are attributes already.
import hvd_sign.tensorflow.compression as compression
import hvd_sign.tensorflow.elastic as elastic
import hvd_sign.tensorflow.functions as functions
import hvd_sign.tensorflow.gradient_aggregation as gradient_aggregation
import hvd_sign.tensorflow.gradient_aggregation_eager as gradient_aggregation_eager
import hvd_sign.tensorflow.keras as keras
import hvd_sign.tensorflow.mpi_ops as mpi_ops
import hvd_sign.tensorflow.sync_batch_norm as sync_batch_norm
import hvd_sign.tensorflow.util as util
