"""This process and MPI: who starts it, who ends it, and that a forked child has none.

mpi4py would start MPI where it is imported, and end it after all else, in forked children too,
where that waits for ever. So it is started and ended here, unless the program had mpi4py do it.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import re
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any

from hvd_sign.errors import VoteError

logger = logging.getLogger("hvd_sign")

FORKED = (
    "MPI and hvd_sign's threads do not survive a fork, and this process was forked from a rank; "
    "make such calls in the rank itself, or start the other process by multiprocessing's 'spawn' "
    "or by subprocess"
)
FINALIZED_STATE = 5
"""What Open MPI's ``ompi_mpi_state`` is after MPI_Finalize."""

_began = False
_started_mpi = False
_forked = False


def begin() -> None:
    """Notes that this process has what no forked child of it may use: threads, connections."""
    global _began
    _began = True


def forked() -> bool:
    """Whether this is a forked child of a process that was a rank when it forked."""
    return _forked


def check_not_forked() -> None:
    """Raises VoteError in a forked child of a rank."""
    if _forked:
        raise VoteError(FORKED)


def active_mpi() -> Any:
    """mpi4py's MPI module if MPI was started, by whomever, and not finalised; else None."""
    mpi = sys.modules.get("mpi4py.MPI")
    active = mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized()
    return mpi if active else None


def mpi_has_ended() -> bool:
    """Whether MPI was finalised."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and bool(mpi.Is_finalized())


def load_mpi() -> Any:
    """mpi4py's MPI module, with MPI started unless somebody has.

    Raises:
        VoteError: this is a forked child.
        RuntimeError: mpi4py or MPI cannot be loaded, MPI was finalised, or it was initialised
            without MPI_THREAD_MULTIPLE.
    """
    global _started_mpi
    check_not_forked()
    try:
        mpi = import_mpi()
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"hvd_sign votes over MPI, but mpi4py cannot load it ({error}); install an MPI and put "
            "its libraries on the loader's path"
        ) from error
    if mpi.Is_finalized():
        raise RuntimeError(
            "MPI has been finalised, which cannot be undone; call hvd_sign's init() before "
            "Horovod's, so that Horovod's shutdown leaves MPI alone"
        )
    if not mpi.Is_initialized():
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
        _started_mpi = True
    level = mpi.Query_thread()
    if level < mpi.THREAD_MULTIPLE:
        raise RuntimeError(
            f"hvd_sign needs MPI_THREAD_MULTIPLE ({mpi.THREAD_MULTIPLE}), but MPI was initialised "
            f"with level {level}; call hvd_sign's init() first, or unset "
            "HOROVOD_MPI_THREADS_DISABLE"
        )
    _abort_on_uncaught_exceptions()
    return mpi


def import_mpi() -> Any:
    """Imports mpi4py's MPI module, which then neither starts nor ends MPI."""
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:
        chosen = mpi4py.rc.initialize, mpi4py.rc.finalize
        mpi4py.rc(initialize=False, finalize=False)
        try:
            from mpi4py import MPI  # noqa: F401
        finally:
            mpi4py.rc(initialize=chosen[0], finalize=chosen[1])
    return sys.modules["mpi4py.MPI"]


def mpi_name(said: str) -> str:
    """Name and version of an MPI, of what MPI_Get_library_version says."""
    words = " ".join(said.rstrip("\0").split())
    named = re.match(r"(Open MPI v[\w.]+)|(.*?MPI\w*) Version: ?(\S+)", words)
    if named is None:
        return words[:60]
    return named[1] or f"{named[2]} {named[3]}"


def _abort_on_uncaught_exceptions() -> None:
    """Makes an uncaught exception on one rank end the job.

    Finalising MPI waits for all ranks, and those would wait for this one's ballot: a hang.
    """
    earlier = sys.excepthook
    if getattr(earlier, "hvd_sign", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        earlier(kind, error, trace)
        mpi = active_mpi()
        if mpi is not None and not _forked and mpi.COMM_WORLD.Get_size() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            mpi.COMM_WORLD.Abort(1)

    hook.hvd_sign = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def _end_mpi() -> None:
    mpi = active_mpi()
    if mpi is None:
        return
    if _started_mpi and not _forked:
        mpi.Finalize()
    elif _forked and not _started_mpi:
        _keep_from_finalizing(mpi)


def _keep_from_finalizing(mpi: Any) -> None:
    """Makes MPI say that it has been finalised, as mpi4py asks before it would finalise it."""
    with suppress(ValueError):
        ctypes.c_int.in_dll(ctypes.CDLL(mpi.__file__), "ompi_mpi_state").value = FINALIZED_STATE
    if not mpi.Is_finalized():
        logger.warning(
            "mpi4py finalises MPI at the end of this forked child, which may wait for ever; end "
            "it by os._exit(), or set mpi4py.rc.finalize = False before importing mpi4py.MPI"
        )


def _after_fork() -> None:
    global _forked
    _forked = _forked or _began or active_mpi() is not None


# Handlers run last in, first out: this early one comes after those of all that talk over MPI.
atexit.register(_end_mpi)
os.register_at_fork(after_in_child=_after_fork)
