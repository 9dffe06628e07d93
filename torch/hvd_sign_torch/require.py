"""Is PyTorch there, and which runtime serves it? Asked before anything half-works."""

from __future__ import annotations

import importlib.util
import os

from hvd_sign.jobs import MPI, choose_runtime

OLDEST_TORCH = (2, 1)
BINDING = "hvd_sign.torch"


def require_torch() -> None:
    """Raises ImportError, with the remedy, unless PyTorch is there."""
    found = importlib.util.find_spec("torch")
    # From the repository's root an absent PyTorch is found as the folder torch/, without origin.
    if found is None or found.origin is None:
        raise ImportError(f"{BINDING} needs PyTorch, which is not installed: pip install torch")
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise ImportError(
            f"{BINDING} needs PyTorch {'.'.join(map(str, OLDEST_TORCH))} or newer, "
            f"found {torch.__version__}"
        )


def why_not_horovod() -> str | None:
    """Why Horovod cannot serve this PyTorch, as a sentence with the remedy; None: it can."""
    build = "pip install --no-build-isolation horovod==0.28.1"
    if not horovod_installed():
        return "Horovod is not installed: HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 " + build
    try:
        import horovod.torch as horovod
    except (ImportError, AttributeError, OSError) as error:
        return (
            f"Horovod built for PyTorch cannot be imported ({error}): HOROVOD_WITH_PYTORCH=1 "
            "HOROVOD_WITH_MPI=1 " + build
        )
    if not hasattr(horovod, "allreduce"):
        import torch

        return (
            "horovod.torch has no native library that loads with PyTorch "
            f"{torch.__version__}; build Horovod again: HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 "
            "pip install --no-cache-dir --force-reinstall --no-deps --no-build-isolation "
            "horovod==0.28.1"
        )
    return None


def horovod_installed() -> bool:
    """Whether there is a Horovod, for whatever framework."""
    try:
        return importlib.util.find_spec("horovod") is not None
    except ImportError:
        return False


require_torch()

WHY_NOT_HOROVOD = None if os.environ.get("HVD_SIGN_RUNTIME") == MPI else why_not_horovod()
RUNTIME = choose_runtime(BINDING, WHY_NOT_HOROVOD)
"""``"horovod"`` or ``"mpi"``."""


def runtime() -> str:
    """Which runtime is in use: ``"horovod"``, or ``"mpi"``: hvd_sign's own on MPI alone.

    ``HVD_SIGN_RUNTIME`` (``auto``, ``horovod``, ``mpi``) decides, before the import.
    """
    return RUNTIME
