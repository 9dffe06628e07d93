"""What this runtime is made of, under the names by which Horovod tells it."""

from __future__ import annotations

from hvd_sign.core.process import load_mpi
from hvd_sign.standalone.ranks import ranks


def mpi_threads_supported() -> bool:
    """Whether MPI may be called from several threads at a time.

    Raises:
        ValueError: ``init()`` was not called.
    """
    ranks()
    mpi = load_mpi()
    return bool(mpi.Query_thread() == mpi.THREAD_MULTIPLE)


def mpi_enabled() -> bool:
    """True: this runtime is on MPI."""
    return True


def mpi_built() -> bool:
    """True: this runtime is on MPI."""
    return True


def gloo_enabled() -> bool:
    """False: there is no Gloo in this runtime."""
    return False


def gloo_built() -> bool:
    """False: there is no Gloo in this runtime."""
    return False


def nccl_built() -> int:
    """0: there is no NCCL in this runtime; Horovod gives its version."""
    return 0


def ddl_built() -> bool:
    """False: there is no DDL in this runtime."""
    return False


def ccl_built() -> bool:
    """False: there is no oneCCL in this runtime."""
    return False


def cuda_built() -> bool:
    """False: tensors on a GPU pass through the host's memory."""
    return False


def rocm_built() -> bool:
    """False: tensors on a GPU pass through the host's memory."""
    return False


def check_extension(ext_name: str, ext_env_var: str, pkg_path: str, *args: str) -> None:
    """Raises ImportError: this runtime has no native library for a framework.

    Args:
        ext_name: of Horovod's that is asked for.
        ext_env_var: what has Horovod build it.
        pkg_path: where it would be.
        args: its name.
    """
    raise ImportError(
        f"{ext_name}: expected Horovod's library, but the runtime 'mpi' is in use; to have it, "
        f"build Horovod with {ext_env_var}=1"
    )
