"""Are PyTorch and Horovod there? Asked before anything half-works."""

from __future__ import annotations

import importlib.util

OLDEST_TORCH = (2, 1)


def require_frameworks() -> None:
    """Raises ImportError, with the remedy, unless PyTorch and Horovod's PyTorch part are there."""
    found = importlib.util.find_spec("torch")
    # From the repository's root an absent PyTorch is found as the folder torch/, without origin.
    if found is None or found.origin is None:
        raise ImportError("hvd_sign.torch needs PyTorch, which is not installed: pip install torch")
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise ImportError(
            f"hvd_sign.torch needs PyTorch {'.'.join(map(str, OLDEST_TORCH))} or newer, "
            f"found {torch.__version__}"
        )
    try:
        import horovod.torch
    except ImportError as error:
        raise ImportError(
            f"hvd_sign.torch needs Horovod built for PyTorch, which cannot be imported ({error}): "
            "HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 pip install --no-build-isolation "
            "horovod==0.28.1"
        ) from error
    if not hasattr(horovod.torch, "allreduce"):
        raise ImportError(
            "hvd_sign.torch needs Horovod built for this PyTorch, but horovod.torch has no native "
            f"library that loads with PyTorch {torch.__version__}; build Horovod again: "
            "HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 pip install --no-cache-dir "
            "--force-reinstall --no-deps --no-build-isolation horovod==0.28.1"
        )
