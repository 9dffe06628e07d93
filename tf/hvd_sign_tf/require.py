"""Is TensorFlow there, and which runtime serves it? Asked before anything half-works."""

from __future__ import annotations

import importlib.util
import logging

from hvd_sign.jobs import choose_runtime

OLDEST_TENSORFLOW = (2, 15)
BINDING = "hvd_sign.tensorflow"

logger = logging.getLogger("hvd_sign")


def require_tensorflow() -> None:
    """Raises ImportError, with the remedy, unless TensorFlow is there."""
    found = importlib.util.find_spec("tensorflow")
    if found is None or found.origin is None:
        raise ImportError(
            f"{BINDING} needs TensorFlow, which is not installed: pip install tensorflow"
        )
    import tensorflow as tf

    version = tuple(int(part) for part in tf.__version__.split(".")[:2])
    if version < OLDEST_TENSORFLOW:
        raise ImportError(
            f"{BINDING} needs TensorFlow {'.'.join(map(str, OLDEST_TENSORFLOW))} or newer, "
            f"found {tf.__version__}"
        )


def why_not_horovod() -> str | None:
    """Why Horovod cannot serve this TensorFlow, as a sentence; None: it can."""
    if importlib.util.find_spec("horovod") is None:
        return (
            "Horovod is not installed: HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_MPI=1 pip install "
            "--no-build-isolation horovod==0.28.1 (TensorFlow up to 2.15)"
        )
    try:
        import horovod.tensorflow as horovod
    except (ImportError, AttributeError, OSError) as error:
        return f"Horovod cannot be used with this TensorFlow ({error}); it serves those up to 2.15"
    if not hasattr(horovod, "allreduce"):
        return "Horovod has no native library for this TensorFlow; it serves TensorFlow up to 2.15"
    return None


require_tensorflow()

WHY_NOT_HOROVOD = why_not_horovod()
RUNTIME = choose_runtime(BINDING, WHY_NOT_HOROVOD)
"""``"horovod"`` or ``"mpi"``."""


def runtime() -> str:
    """Which runtime is in use: ``"horovod"``, or ``"mpi"``: hvd_sign's own on MPI alone.

    ``HVD_SIGN_RUNTIME`` (``auto``, ``horovod``, ``mpi``) decides, before the import.
    """
    return RUNTIME
