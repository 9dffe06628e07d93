"""Variables and objects given to all ranks."""

from hvd_sign_tf.mpi.objects import allgather_object, broadcast_object, broadcast_object_fn
from hvd_sign_tf.mpi.variables import broadcast_variables
