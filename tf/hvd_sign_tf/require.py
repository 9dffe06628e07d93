"""Is TensorFlow there, and which runtime serves it? Asked before anything half-works."""

from __future__ import annotations

from hvd_sign.frontend.binding import Binding

BINDING = Binding(
    "hvd_sign.tensorflow",
    "TensorFlow",
    "tensorflow",
    (2, 15),
    build="HOROVOD_WITH_TENSORFLOW=1",
    own="hvd_sign_tf.mpi",
    limit=" (for TensorFlow up to 2.15)",
)


def runtime() -> str:
    """Which runtime is in use: ``"horovod"``, or ``"mpi"``: hvd_sign's own on MPI alone.

    ``HVD_SIGN_RUNTIME`` (``auto``, ``horovod``, ``mpi``) decides, before the import.
    """
    return BINDING.runtime
