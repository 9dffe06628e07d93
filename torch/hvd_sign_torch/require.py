"""Is PyTorch there, and which runtime serves it? Asked before anything half-works."""

from __future__ import annotations

from hvd_sign.frontend.binding import Binding

BINDING = Binding(
    "hvd_sign.torch",
    "PyTorch",
    "torch",
    (2, 1),
    build="HOROVOD_WITH_PYTORCH=1",
    own="hvd_sign_torch.mpi",
)


def runtime() -> str:
    """Which runtime is in use: ``"horovod"``, or ``"mpi"``: hvd_sign's own on MPI alone.

    ``HVD_SIGN_RUNTIME`` (``auto``, ``horovod``, ``mpi``) decides, before the import.
    """
    return BINDING.runtime
